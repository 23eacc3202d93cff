"""The LCD and LCF objectives against the functions of diffusers' distillation scripts, and the solvers Ψ."""

import copy
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lcm_core.consistency import predict_x0
from lcm_core.distill import Draw, ddim, dpmpp_2s, draw_timesteps, huber, lcd_loss, lcf_loss
from lcm_core.distill.losses import already_consistent, distance_of
from lcm_core.guidance import guidance_embedding
from lcm_core.lora import LoRAVector
from lcm_core.lora.names import canonical_name
from lcm_core.schedule import NoiseSchedule
from lcm_core.solvers import ddim_sample
from pocket import lcm, teacher

SCHEDULE = NoiseSchedule.scaled_linear()
ABAR = SCHEDULE.alphas_cumprod
INDEX = torch.tensor([0, 25, 37, 49])  # of the 50 DDIM timesteps
START = (INDEX + 1) * 20 - 1
END = torch.tensor([0, 499, 739, 979])
DRAW = Draw(
    START,
    END,
    torch.tensor([5.0, 7.5, 11.0, 15.0]),
    torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2)),
)
PREDICTIONS = ["epsilon", "v_prediction", "sample"]


def rows(values):
    """(B,) beside (B, C, H, W), in float32."""
    return values.float()[:, None, None, None]


# The scripts' functions, in our words: boundary scalings, x0 and noise by kind of prediction, DDIMSolver, embedding.


def scalings(t):
    scaled = 10.0 * t.float()
    return rows(0.25 / (scaled**2 + 0.25)), rows(scaled / (scaled**2 + 0.25) ** 0.5)


def original(output, t, x, kind):
    alpha, sigma = rows(ABAR[t].sqrt()), rows((1 - ABAR[t]).sqrt())
    x0 = {"epsilon": (x - sigma * output) / alpha, "v_prediction": alpha * x - sigma * output, "sample": output}
    return x0[kind]


def noise_of(output, t, x, kind):
    alpha, sigma = rows(ABAR[t].sqrt()), rows((1 - ABAR[t]).sqrt())
    noise = {
        "epsilon": output,
        "v_prediction": alpha * output + sigma * x,
        "sample": (x - alpha * output) / sigma,
    }
    return noise[kind]


def solver_step(x0, noise):
    before = torch.cat([ABAR[:1], ABAR[torch.arange(1, 50) * 20 - 1]])[INDEX]
    return rows(before.sqrt()) * x0 + rows((1 - before).sqrt()) * noise


def embedded(w, width=256):
    half = width // 2
    frequencies = torch.exp(torch.arange(half, dtype=torch.float64) * -(torch.log(torch.tensor(1e4)) / (half - 1)))
    angles = 1000.0 * w.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def script_loss(student, teacher, target, z, cond, uncond, kind, distance):
    """A step of the scripts: cond and uncond apart, guided x0 and noise, then the DDIM solver."""
    x = rows(ABAR[START].sqrt()) * z + rows((1 - ABAR[START]).sqrt()) * DRAW.noise
    w = rows(DRAW.omega)
    skip, out = scalings(START)
    online = skip * x + out * original(student(x, START, cond, DRAW.omega), START, x, kind)
    with_c, without = teacher(x, START, cond, None), teacher(x, START, uncond, None)
    x0, noise = ([f(o, START, x, kind) for o in (with_c, without)] for f in (original, noise_of))
    x_next = solver_step(x0[0] + w * (x0[0] - x0[1]), noise[0] + w * (noise[0] - noise[1]))
    skip, out = scalings(END)
    goal = skip * x_next + out * original(target(x_next, END, cond, DRAW.omega), END, x_next, kind)
    if distance == "l2":
        return ((online - goal) ** 2).mean()
    return (((online - goal) ** 2 + 0.001**2).sqrt() - 0.001).mean()


class Small(nn.Module):
    """A smooth network of a few weights."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.mix = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x, t, cond, omega=None):
        h = torch.tanh(self.conv(x) + t[:, None, None, None] / 1000)
        return self.mix(h) + cond[0][:, None, None, None]


Z = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1))
COND, UNCOND = (torch.linspace(0.1, 0.5, 4),), (torch.zeros(4),)


@pytest.mark.parametrize("distance", ["huber", "l2"])
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_lcd_is_the_scripts_step(kind, distance):
    student, teach, target = Small(0), Small(1), Small(2)
    ours = lcd_loss(
        student, teach, target, Z, COND, UNCOND, DRAW, schedule=SCHEDULE, prediction=kind,
        distance=distance_of(distance),
    )  # fmt: skip
    theirs = script_loss(student, teach, target, Z, COND, UNCOND, kind, distance)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    gradients = [torch.autograd.grad(loss, student.parameters()) for loss in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
    assert all(p.grad is None for p in [*teach.parameters(), *target.parameters()])


def test_a_full_lcm_takes_omega_as_the_scripts_unet_does():
    torch.manual_seed(3)
    shape = {
        "block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 8, "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    unet, plain = UNet2DConditionModel(**shape, time_cond_proj_dim=256), UNet2DConditionModel(**shape)

    def student(x, t, cond, omega, embed=guidance_embedding):
        return unet(x, t, *cond, timestep_cond=embed(omega)).sample

    def teach(x, t, cond, omega):
        assert omega is None
        return plain(x, t, *cond).sample

    cond, uncond = ((torch.randn(4, 3, 8),) for _ in range(2))
    ours = lcd_loss(student, teach, student, Z, cond, uncond, DRAW, schedule=SCHEDULE)
    as_script = partial(student, embed=embedded)
    theirs = script_loss(as_script, teach, as_script, Z, cond, uncond, "epsilon", "huber")
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, [unet.time_embedding.cond_proj.weight])
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_lcf_gives_both_points_one_noise(kind):
    student, target = Small(0), Small(2)
    ours = lcf_loss(student, target, Z, COND, DRAW, schedule=SCHEDULE, prediction=kind)
    points = []
    for network, t in ((student, START), (target, END)):
        x = rows(ABAR[t].sqrt()) * Z + rows((1 - ABAR[t]).sqrt()) * DRAW.noise
        skip, out = scalings(t)
        points.append(skip * x + out * original(network(x, t, COND), t, x, kind))
    torch.testing.assert_close(ours, huber(*points), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_dpmpp_follows_the_ode_more_closely_than_ddim(kind):
    """An exact model of Gaussian data: a step of k = 20 against DDIM through every timestep."""
    variance = 0.3
    t, t_next = torch.tensor([999, 799, 399]), torch.tensor([979, 779, 379])
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def network(x, t):
        alpha, sigma = (v.reshape(-1, 1, 1, 1) for v in (SCHEDULE.alpha(t), SCHEDULE.sigma(t)))
        x0 = alpha * variance / (alpha**2 * variance + sigma**2) * x
        noise = (x - alpha * x0) / sigma
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * x0, "sample": x0}[kind]

    def exact(row):
        points = []

        def denoise(x, s):
            points.append(x)
            return predict_x0(network(x, torch.tensor(s)), x, s, SCHEDULE, kind)

        ddim_sample(denoise, x[row : row + 1], list(range(int(t[row]), int(t_next[row]) - 1, -1)), SCHEDULE)
        return points[-1][0]

    reference = torch.stack([exact(row) for row in range(3)])
    errors = [(psi(network, x, t, t_next, SCHEDULE, kind) - reference).norm() for psi in (ddim, dpmpp_2s)]
    assert errors[1] < 0.1 * errors[0]


def test_dpmpp_is_a_first_order_step_from_pure_noise():
    schedule = SCHEDULE.zero_terminal_snr()
    x, t, t_next = Z[:1], torch.tensor([999]), torch.tensor([979])
    step = dpmpp_2s(lambda x, t: x * 0.5, x, t, t_next, schedule, "v_prediction")
    torch.testing.assert_close(step, ddim(lambda x, t: x * 0.5, x, t, t_next, schedule, "v_prediction"))


def test_guidance_is_on_each_conditions_own_solution():
    """x̂ = x + (1 + ω)Ψ(c) − ωΨ(∅), also where Ψ is not linear in the model."""
    teach, met = Small(1), []

    def target(x, t, cond, omega):
        met.append(x)
        return x

    lcd_loss(teach, teach, target, Z, COND, UNCOND, DRAW, schedule=SCHEDULE, solver=dpmpp_2s)
    x = rows(ABAR[START].sqrt()) * Z + rows((1 - ABAR[START]).sqrt()) * DRAW.noise
    ends = [
        dpmpp_2s(lambda x, t, c=c: teach(x, t, c), x, START, END, SCHEDULE, "epsilon").detach() for c in (COND, UNCOND)
    ]
    torch.testing.assert_close(met[0], ends[0] + rows(DRAW.omega) * (ends[0] - ends[1]), rtol=1e-5, atol=1e-5)


def test_draw_timesteps():
    t, t_next = draw_timesteps(500, links=50, generator=torch.Generator().manual_seed(0))
    assert set((t + 1).tolist()) == set(range(20, 1001, 20))
    assert torch.equal(t_next, (t - 20).clamp(min=0))
    free, _ = draw_timesteps(500, links=10, on_grid=False)
    assert free.min() >= 1 and free.max() <= 999
    assert draw_timesteps(500, links=1000)[0].min() == 1
    with pytest.raises(ValueError, match="links 0"):
        draw_timesteps(1, links=0)


def test_a_teacher_that_draws_in_one_step_is_noticed():
    """The pocket teacher, with and without its LCM-LoRA."""
    unet, words = teacher.load_teacher()
    fast, vector = copy.deepcopy(unet), LoRAVector.load(lcm.WEIGHTS)
    modules = {canonical_name(name): module for name, module in fast.named_modules()}
    for name in vector.modules:
        modules[name].weight += vector.delta(name)
    prompts = ["animal", "fruit", "vehicle", "sky"] * 4
    cond = words(words.index([[prompt] for prompt in prompts]))
    noise = torch.randn(2, 16, 4, 16, 16, generator=torch.Generator().manual_seed(0))

    def model(x, t, cond, omega=None, unet=unet):
        return unet(x, t, *cond)

    def denoise(x, t):
        return predict_x0(model(x, torch.full((16,), t), cond), x, t, SCHEDULE)

    with torch.no_grad():
        z = ddim_sample(denoise, noise[0], list(range(999, 0, -100)), SCHEDULE)
    found = [
        already_consistent(partial(model, unet=u), z, cond, noise[1], schedule=SCHEDULE, prediction="epsilon")
        for u in (unet, fast)
    ]
    assert found == [False, True]
