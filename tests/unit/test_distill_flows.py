"""Flow teachers against diffusers: the families' calls, the solvers, LCD and LCF, the shifts, on tiny networks."""

from __future__ import annotations

import math

import diffusers
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from tiny_transformers import HEADS, NETWORKS, ONE

from lcm_core.consistency import consistency_function, predict_noise, predict_x0
from lcm_core.distill import Draw, draw_sigmas, huber, lcd_loss, lcf_loss, sample_latents
from lcm_core.distill.families import FAMILIES
from lcm_core.distill.flow_pipeline import FlowTeacher, shift_of
from lcm_core.schedule import Flow, FlowSchedule, NoiseSchedule, lcm_sigmas, trailing_sigmas
from lcm_core.solvers import SOLVERS, ddim, dpmpp_2s, heun

SCHEDULE = FlowSchedule(Flow(3.0))
WAN = {**ONE, "text_dim": 12, "freq_dim": 8, "ffn_dim": 20}
# Pipeline -> (transformer, its settings, channels of the latents, context, pooled)
TINY = {
    "StableDiffusion3Pipeline": ("SD3Transformer2DModel", {
        **NETWORKS["Stable Diffusion 3"][2], "sample_size": 8, "pos_embed_max_size": 8, "patch_size": 2,
        "out_channels": 4,
    }, 4, 12, 10),
    "FluxPipeline": ("FluxTransformer2DModel", {**NETWORKS["Flux"][2], "in_channels": 16}, 4, 12, 10),
    "Lumina2Pipeline": ("Lumina2Transformer2DModel", {
        "hidden_size": 24, "num_layers": 1, "num_refiner_layers": 1, "num_attention_heads": 3, "num_kv_heads": 1,
        "multiple_of": 4, "in_channels": 4, "cap_feat_dim": 12, "axes_dim_rope": (4, 2, 2), "axes_lens": (32, 16, 16),
        "sample_size": 8,
    }, 4, 12, 0),
    "ZImagePipeline": ("ZImageTransformer2DModel", {
        "in_channels": 4, "dim": 256, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 8, "n_kv_heads": 8,
        "cap_feat_dim": 12, "axes_dims": [8, 12, 12], "axes_lens": [64, 32, 32],
    }, 4, 12, 0),
    "QwenImagePipeline": ("QwenImageTransformer2DModel", {
        **HEADS, "num_layers": 1, "in_channels": 16, "out_channels": 4, "joint_attention_dim": 12,
        "axes_dims_rope": (2, 2, 4),
    }, 4, 12, 0),
    "WanPipeline": ("WanTransformer3DModel", {**WAN, "out_channels": 4}, 4, 12, 0),
}  # fmt: skip


def tiny(kind):
    """(FlowTeacher, shape of a latent) of a pipeline that has a transformer and a scheduler alone."""
    name, settings, channels, _, _ = TINY[kind]
    torch.manual_seed(0)
    network = getattr(diffusers, name)(**settings).requires_grad_(False).eval()
    for p in network.parameters():
        p.copy_(0.1 * torch.randn(p.shape))
    pipeline_class = getattr(diffusers, kind)
    parts = dict.fromkeys(set(pipeline_class._get_signature_keys(pipeline_class)[0]) - {"transformer", "scheduler"})
    pipeline = pipeline_class(**parts, transformer=network, scheduler=FlowMatchEulerDiscreteScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return FlowTeacher(pipeline, 64, guidance=2.0), (channels, 3, 8, 8) if kind == "WanPipeline" else (channels, 8, 8)


def conditions(kind, seed, count=1, tokens=6):
    """What the family's `conditions` give, for a batch, and the pipeline's own arguments for the same."""
    _, _, _, width, pooled = TINY[kind]
    generator = torch.Generator().manual_seed(seed)
    embeds = torch.randn(count, tokens, width, generator=generator)
    given = {"prompt_embeds": embeds}
    if pooled:
        given["pooled_prompt_embeds"] = torch.randn(count, pooled, generator=generator)
    if kind == "FluxPipeline":
        return (*given.values(), torch.full((count,), 2.0)), given
    mask = torch.ones(count, tokens, dtype=torch.long)
    if kind == "Lumina2Pipeline":
        return (embeds, mask), {**given, "prompt_attention_mask": mask}
    if kind == "QwenImagePipeline":
        return (embeds,), {**given, "prompt_embeds_mask": mask}
    if kind == "ZImagePipeline":
        return (embeds,), {"prompt_embeds": list(embeds)}
    return tuple(given.values()), given


@pytest.mark.parametrize("kind", TINY)
def test_f_is_the_pipeline_s_picture_in_one_step(kind):
    """diffusers' pipeline, asked to go from σ to 0 in a step of Euler, gives x − σ·v."""
    teacher, shape = tiny(kind)
    pipeline, sigma = teacher.pipeline, 0.7
    cond, given = conditions(kind, 1)
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([sigma])
    with torch.no_grad():
        ours = consistency_function(teacher(x, t, cond, None), x, t, SCHEDULE, "flow_prediction")
    cell = teacher.cell
    call = {"height": shape[-2] * cell, "width": shape[-1] * cell, "output_type": "latent", **given}
    scale = {"QwenImagePipeline": {"true_cfg_scale": 1.0}, "FluxPipeline": {"guidance_scale": 2.0}}
    call |= scale.get(kind, {"guidance_scale": 0.0 if kind == "ZImagePipeline" else 1.0})
    if kind == "WanPipeline":
        scheduler = pipeline.scheduler
        once = scheduler.set_timesteps
        scheduler.set_timesteps = lambda *_, **__: once(sigmas=[sigma])
        theirs = pipeline(latents=x, num_frames=9, num_inference_steps=1, **call).frames
    else:
        packs = kind in ("FluxPipeline", "QwenImagePipeline")
        latents = pipeline._pack_latents(x, 1, *shape) if packs else x
        theirs = pipeline(latents=latents, sigmas=[sigma], num_inference_steps=1, **call).images
        if packs:
            theirs = pipeline._unpack_latents(theirs, shape[1] * cell, shape[2] * cell, cell).reshape(x.shape)
    assert (ours - x).norm() > 1e-2 * x.norm()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def script_step(solver, teacher, x, sigma, sigma_next, cond, uncond, w):
    """x at σ_next, by diffusers' schedulers, on the guided velocity for Euler and of each condition for Heun."""

    def velocity(x, level, c):
        return teacher(x, torch.full((len(x),), level), c, None)

    if solver == "ddim":
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=[sigma, sigma_next])
        v, empty = (velocity(x, sigma, c) for c in (cond, uncond))
        return scheduler.step(v + w * (v - empty), scheduler.timesteps[0], x).prev_sample
    ends = []
    for c in (cond, uncond):
        scheduler = FlowMatchHeunDiscreteScheduler()
        scheduler.set_timesteps(2)
        levels = torch.tensor([sigma, sigma_next, sigma_next, 0.0])
        scheduler.sigmas, scheduler.timesteps = levels, 1000 * levels[:-1]
        moved = x
        for i in range(2):
            v = velocity(moved, float(levels[i]), c)
            moved = scheduler.step(v, scheduler.timesteps[i], moved).prev_sample
        ends.append(moved)
    return ends[0] + w * (ends[0] - ends[1])


@pytest.mark.parametrize("solver", ["ddim", "heun"])
@pytest.mark.parametrize("kind", TINY)
def test_lcd_and_lcf_are_those_of_diffusers_schedulers(kind, solver):
    teacher, shape = tiny(kind)
    generator = torch.Generator().manual_seed(4)
    z, noise = (torch.randn(2, *shape, generator=generator) for _ in range(2))
    (cond, _), (uncond, _) = conditions(kind, 5, 2), conditions(kind, 6, 2)
    sigma, sigma_next, w = 0.8, 0.55, 1.5
    draw = Draw(*(torch.full((2,), v, dtype=torch.float64) for v in (sigma, sigma_next, w)), noise)
    student = teacher
    x = (1 - sigma) * z + sigma * noise

    def f(x, level):
        return x - level * student(x, torch.full((2,), level), cond, None)

    options = {"schedule": SCHEDULE, "prediction": "flow_prediction"}
    with torch.no_grad():
        ours = lcd_loss(student, teacher, student, z, cond, uncond, draw, solver=SOLVERS[solver], **options)
        x_next = script_step(solver, teacher, x, sigma, sigma_next, cond, uncond, w)
        torch.testing.assert_close(ours, huber(f(x, sigma), f(x_next, sigma_next)), rtol=1e-5, atol=1e-5)
        from_data = lcf_loss(student, student, z, cond, draw, **options)
        x_next = (1 - sigma_next) * z + sigma_next * noise
        torch.testing.assert_close(from_data, huber(f(x, sigma), f(x_next, sigma_next)), rtol=1e-5, atol=1e-5)
    assert ours > 1e-3 and abs(ours - from_data) > 1e-4


def test_every_family_is_tested_and_the_solvers_have_their_order():
    """Halving a step on a flow of Gaussian data quarters the error of Euler's and divides the others' by eight."""
    assert TINY.keys() == FAMILIES.keys()
    deviation = 0.5

    def velocity(x, t):
        sigma = t[:, None]
        variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
        x0 = (1 - sigma) * deviation**2 / variance * x
        return (x - x0) / sigma

    def exact(x, start, end):
        spread = [((1 - s) ** 2 * deviation**2 + s**2) ** 0.5 for s in (start, end)]
        return x * spread[1] / spread[0]

    x = torch.ones(1, 1, dtype=torch.float64)
    for step, order in ((ddim, 1), (heun, 2), (dpmpp_2s, 2)):
        errors = []
        for size in (0.02, 0.01):
            t, t_next = (torch.tensor([v], dtype=torch.float64) for v in (0.6, 0.6 - size))
            errors.append(abs(step(velocity, x, t, t_next, SCHEDULE, "flow_prediction") - exact(x, 0.6, 0.6 - size)))
        assert math.log2(float(errors[0] / errors[1])) == pytest.approx(order + 1, abs=0.1)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_to_a_clean_picture_asks_no_network_there(solver):
    asked = []

    def velocity(x, t):
        asked.append(float(t.min()))
        return x

    x, t, end = torch.ones(1, 2), torch.tensor([0.3], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    stepped = SOLVERS[solver](velocity, x, t, end, SCHEDULE, "flow_prediction")
    torch.testing.assert_close(stepped, x - 0.3 * x)


def test_levels_are_those_that_sampling_walks():
    t, t_next = draw_sigmas(400, SCHEDULE, links=20, generator=torch.Generator().manual_seed(0))
    grid = lcm_sigmas(20, SCHEDULE.flow, original_steps=20)
    assert sorted({round(float(v), 9) for v in t}, reverse=True) == [round(v, 9) for v in grid]
    after = dict(zip([round(v, 9) for v in grid], [*grid[1:], 0.0], strict=True))
    for a, b in zip(t.tolist(), t_next.tolist(), strict=True):
        assert b == pytest.approx(after[round(a, 9)], abs=1e-9)
    free, below = draw_sigmas(400, SCHEDULE, links=20, on_grid=False)
    assert free.min() > 0 and free.max() <= 1 and (below < free).all() and below.min() == 0
    share = SCHEDULE.share(free)
    torch.testing.assert_close(SCHEDULE.level(share), free)
    with pytest.raises(ValueError, match="links 0"):
        draw_sigmas(1, SCHEDULE, links=0)


def test_what_does_not_fit_a_flow_is_refused():
    x, diffusion = torch.ones(1, 2), NoiseSchedule.scaled_linear()
    with pytest.raises(ValueError, match="sigma 999 is outside"):
        SCHEDULE.sigma(999)
    for predict in (predict_x0, predict_noise):
        with pytest.raises(ValueError, match="give it a FlowSchedule"):
            predict(x, x, 5, diffusion, "flow_prediction")
    with pytest.raises(ValueError, match="solver heun is for flow models; use dpm"):
        heun(lambda x, t: x, x, torch.tensor([9]), torch.tensor([5]), diffusion, "epsilon")


def test_the_teacher_draws_by_eulers_method():
    teacher, shape = tiny("StableDiffusion3Pipeline")
    (cond, _), (uncond, _) = conditions("StableDiffusion3Pipeline", 5, 2), conditions("StableDiffusion3Pipeline", 6, 2)
    options = {"schedule": SCHEDULE, "prediction": "flow_prediction", "steps": 3, "scale": 2.5, "seed": 1}
    drawn = sample_latents(teacher, cond, uncond, shape, **options)
    levels = [*trailing_sigmas(3, SCHEDULE.flow), 0.0]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(sigmas=[1.0, 2 / 3, 1 / 3])
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(levels))
    from lcm_core.noise import step_noise

    x = step_noise((2, *shape), 1, 0)
    for i, t in enumerate(scheduler.timesteps):
        v, empty = (teacher(x, torch.full((2,), levels[i]), c, None) for c in (cond, uncond))
        x = scheduler.step(empty + 2.5 * (v - empty), t, x).prev_sample
    torch.testing.assert_close(drawn, x, rtol=1e-4, atol=1e-5)
    alone = sample_latents(teacher, cond, (), shape, **options)
    assert (alone - drawn).norm() > 1e-3


@pytest.mark.parametrize(
    ("config", "tokens", "shift"),
    [
        ({"shift": 3.0}, 4096, 3.0),
        ({"flow_shift": 5.0, "shift": 1.0}, 4096, 5.0),
        ({"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}, 4096, math.exp(1.15)),
        ({"use_dynamic_shifting": True, "time_shift_type": "linear"}, 256, 0.5),
    ],
)
def test_shifts_are_the_schedulers(config, tokens, shift):
    assert shift_of(config, tokens) == pytest.approx(shift)
    if "flow_shift" in config:
        return
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=calculate_shift(tokens) if len(config) > 1 else None)
    torch.testing.assert_close(scheduler.sigmas[1], torch.tensor(Flow(shift).sigma(0.5)), rtol=1e-5, atol=1e-6)
