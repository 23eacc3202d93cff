"""What the sampling nodes do inside the host, watched from inside its process: prints facts as JSON, a key a function.

python tests/host/features.py COMFYUI BASE
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tools.inprocess import Host, load_host, message  # noqa: E402

Facts = dict[str, object]


class Watched:
    """A clone of a MODEL that keeps what its UNet is given: (x, timesteps, cond_or_uncond) of every call."""

    def __init__(self, model, before: Callable[[int], None] = lambda calls: None) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor, list[int]]] = []
        self.model = model.clone()

        def call(apply_model, args, calls=self.calls):
            before(len(calls))
            calls.append((args["input"].clone(), args["timestep"].clone(), list(args["cond_or_uncond"])))
            return apply_model(args["input"], args["timestep"], **args["c"])

        self.model.set_model_unet_function_wrapper(call)

    @property
    def rows(self) -> int:
        return sum(len(x) for x, _, _ in self.calls)

    def timesteps(self) -> list[float]:
        """The first row's timestep at each call."""
        sampling = self.model.get_model_object("model_sampling")
        return [float(sampling.timestep(sigma)[0]) for _, sigma, _ in self.calls]


class Bench:
    def __init__(self, host: Host) -> None:
        self.host = host
        model, clip, vae = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
        self.plain = model
        self.model = host.run("LCMLoRA_Loader", model=model, lora_name="pocket_lcm.safetensors")[0]
        self.positive, self.middle, self.negative = (
            host.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("cat", "animal", "dog")
        )

    def watch(self) -> Watched:
        return Watched(self.model)

    def sample(self, model=None, node: str = "LCMLoRA_Sampler", **inputs) -> torch.Tensor:
        given = {"positive": self.positive, "negative": self.negative, "latent": empty(1), "seed": 5}
        return self.host.run(node, model=model or self.model, **given | inputs)[0]["samples"]


def extra(module: str, name: str) -> type:
    """A node class of the host's comfy_extras, which load_host leaves out."""
    return getattr(importlib.import_module(f"comfy_extras.{module}"), name)


def empty(batch: int) -> dict:
    return {"samples": torch.zeros(batch, 4, 8, 8)}


def frames(batch: int) -> torch.Tensor:
    return torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


def guidance(bench: Bench) -> Facts:
    """UNet evaluations, and what becomes of the picture, by cfg and guidance_until."""
    facts: Facts = {}
    for name, inputs in {
        "cfg 1": {},
        "guided": {"cfg": 1.5},
        "first step": {"cfg": 1.5, "guidance_until": 0.25},
        "two of five": {"cfg": 1.5, "guidance_until": 0.4, "steps": 5},
        "never": {"cfg": 1.5, "guidance_until": 0.0},
        "but the first": {"cfg": 1.5, "guidance_from": 0.25},
        "in the middle": {"cfg": 1.5, "guidance_from": 0.25, "guidance_until": 0.75},
    }.items():
        watched = bench.watch()
        result = bench.sample(watched.model, **inputs)
        facts[name] = {
            "evaluations": watched.rows,
            "guided": [len(kinds) > 1 for _, _, kinds in watched.calls],
            "as cfg 1": largest(result, bench.sample()),
        }
    return facts


def other_guidance(bench: Bench) -> Facts:
    """The host's own guidance nodes around our sampler: evaluations, and the distance from plain guidance."""
    run = bench.host.run
    plain = bench.sample(cfg=2.0)
    rescaled = Watched(run(extra("nodes_model_advanced", "RescaleCFG"), model=bench.model, multiplier=0.7)[0])
    results = {"RescaleCFG": (rescaled, bench.sample(rescaled.model, cfg=2.0))}
    until = Watched(rescaled.model)
    bench.sample(until.model, cfg=2.0, guidance_until=0.25)
    sigmas = run("LCMLoRA_Schedule", model=bench.model)[0]
    sampler = run("LCMLoRA_SamplerSelect")[0]
    cfg_guider, dual_guider, random_noise, custom = (
        extra("nodes_custom_sampler", name)
        for name in ("CFGGuider", "DualCFGGuider", "RandomNoise", "SamplerCustomAdvanced")
    )
    noise = run(random_noise, noise_seed=5)[0]
    for name, guide in {
        "CFGGuider": lambda m: run(cfg_guider, model=m, positive=bench.positive, negative=bench.negative, cfg=2.0),
        "DualCFGGuider": lambda m: run(dual_guider, model=m, cond1=bench.positive, cond2=bench.middle,
                                       negative=bench.negative, cfg_conds=1.5, cfg_cond2_negative=1.5, style="regular"),
    }.items():  # fmt: skip
        watched = bench.watch()
        made = run(custom, noise=noise, guider=guide(watched.model)[0], sampler=sampler,
                   sigmas=sigmas, latent_image=empty(1))[0]["samples"]  # fmt: skip
        results[name] = watched, made
    facts: Facts = {
        name: {"evaluations": watched.rows, "from plain": largest(made, plain), "finite": made.isfinite().all().item()}
        for name, (watched, made) in results.items()
    }
    return facts | {"RescaleCFG first step": until.rows}


def grid(bench: Bench) -> Facts:
    """Timesteps that the UNet is evaluated at."""
    latent = {"samples": frames(1)}
    facts: Facts = {}
    for name, inputs in {
        "4": {},
        "4 at 0.7": {"denoise": 0.7, "latent": latent},
        "own": {"timesteps": "999 679,339, 19"},
        "own at 0.5": {"timesteps": "999, 679, 339, 19", "denoise": 0.5, "latent": latent},
    }.items():
        watched = bench.watch()
        bench.sample(watched.model, **inputs)
        facts[name] = watched.timesteps()
    return facts


def predictions(bench: Bench) -> Facts:
    """What the sampler takes for f_θ against lcm_core's, for predictions and schedules that are not SD's."""
    from lcm_core.consistency import consistency_function
    from lcm_core.schedule import NoiseSchedule

    linear = NoiseSchedule(torch.cumprod(1 - torch.linspace(1e-4, 0.08, 200, dtype=torch.float64), 0))
    shifted = NoiseSchedule.scaled_linear().zero_terminal_snr()
    patch = extra("nodes_model_advanced", "ModelSamplingDiscrete")
    short = bench.plain.clone()
    sampling = copy.copy(short.get_model_object("model_sampling"))
    sampling._buffers = dict(sampling._buffers)
    sampling.set_sigmas(((1 - linear.alphas_cumprod) / linear.alphas_cumprod).sqrt())
    short.add_object_patch("model_sampling", sampling)
    cases = {
        "v": (bench.host.run(patch, model=bench.plain, sampling="v_prediction")[0], "v_prediction",
              NoiseSchedule.scaled_linear()),
        "v, zero terminal SNR": (bench.host.run(patch, model=bench.plain, sampling="v_prediction", zsnr=True)[0],
                                 "v_prediction", shifted),
        "sample": (bench.host.run(patch, model=bench.plain, sampling="x0")[0], "sample", NoiseSchedule.scaled_linear()),
        "200 timesteps": (short, "epsilon", linear),
    }  # fmt: skip
    facts: Facts = {}
    for name, (model, prediction, schedule) in cases.items():
        apart, timesteps = [], []
        for x, t, raw, f in outputs(bench, bench.host.run("LCMLoRA_ModelSampling", model=model)[0]):
            wanted = consistency_function(raw, x, t, schedule, prediction)
            apart.append(largest(f, wanted) / max(1.0, wanted.abs().max().item()))
            timesteps.append(t)
        facts[name] = {"timesteps": timesteps, "apart": apart}
    return facts


def outputs(bench: Bench, model) -> list[tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]]:
    """(what the UNet gets, timestep, its raw output, what the sampler takes for f_θ) of each evaluation."""
    found = []
    sampling = model.get_model_object("model_sampling")
    own = sampling.calculate_denoised

    def watched(sigma, model_output, model_input):
        f = own(sigma, model_output, model_input)
        x = sampling.calculate_input(sigma, model_input)
        found.append((x, int(sampling.timestep(sigma)[0]), model_output.clone(), f))
        return f

    sampling.calculate_denoised = watched
    bench.sample(model)
    del sampling.calculate_denoised
    return found


def seeds(bench: Bench) -> Facts:
    """A seed for each image against each alone: what the UNet is given first and what comes out."""
    own = [7, 2**64 - 1, 21]
    together = bench.watch()
    batch = bench.sample(together.model, latent=empty(3), seeds=", ".join(map(str, own)))
    alone = [bench.sample(seed=seed) for seed in own]
    first = []
    for seed in own:
        watched = bench.watch()
        bench.sample(watched.model, seed=seed)
        first.append(watched.calls[0][0])
    return {
        "given": largest(together.calls[0][0], torch.cat(first)),
        "made": largest(batch, torch.cat(alone)),
        "apart": largest(alone[0], alone[2]),
    }


def long_seeds(bench: Bench) -> Facts:
    """The first noise of seeds below and from 2³² on, alone and in a batch, by node."""
    import comfy.sample

    facts: Facts = {}
    for node in ("LCMLoRA_Sampler", "LCMLoRA_StreamBatch"):
        sigma = None

        def first(seed: int, batch: int = 3, picked: int | None = None, node: str = node) -> torch.Tensor:
            nonlocal sigma
            watched = bench.watch()
            latent = empty(batch) if picked is None else empty(1) | {"batch_index": [picked]}
            bench.sample(watched.model, node, latent=latent, seed=seed, steps=1)
            sigma = watched.calls[0][1][0]
            return torch.cat([x for x, _, _ in watched.calls])

        short = [first(seed) for seed in (7, 2**32 - 1)]
        hosts = [comfy.sample.prepare_noise(empty(3)["samples"], seed) for seed in (7, 2**32 - 1)]
        sampling = bench.model.get_model_object("model_sampling")
        given = [sampling.noise_scaling(sigma.view(1), noise, torch.zeros(1), True) for noise in hosts]
        long = {seed: first(seed) for seed in (7 + 2**32, 7 + 2**33, 7 + 2**63)}
        alone = torch.cat([first(7 + 2**32, picked=i) for i in range(3)])
        rows = torch.cat([short[0], *long.values()]).flatten(1)
        facts[node] = {
            "from the host's": max(largest(a, b) for a, b in zip(short, given, strict=True)),
            "alone": largest(alone, long[7 + 2**32]),
            "different": len(torch.unique(rows, dim=0)),
            "spread": [rows.std().item() / short[0].std().item(), rows.mean().item() / rows.std().item()],
        }
    return facts


def inpainting(bench: Bench) -> Facts:
    """Outside the mask: the result against the input latent, and the noise at each step against the inside's."""
    from lcm_core.noise import step_noise

    original = frames(2) * 5
    facts: Facts = {}
    for gamma in (1.0, 0.4):
        for kind, inside in {"hard": 1.0, "soft": 0.6}.items():
            mask = torch.zeros(1, 64, 64)
            mask[:, :, :32] = inside
            watched = bench.watch()
            latent = {"samples": original, "noise_mask": mask}
            made = bench.sample(watched.model, latent=latent, gamma=gamma, seed=9)
            facts[f"{kind} {gamma}"] = {
                "outside": largest(made[..., 4:], original[..., 4:]),
                "inside": largest(made[..., :4], original[..., :4]),
            }
            if gamma == 1 and kind == "hard":
                x0 = original * 0.18215
                noises = [step_noise(x0.shape, 9, 100 * (t + 1)) for t in (759, 499, 259)]
                given = [x[..., 4:] for x, _, _ in watched.calls[1:]]
                levels = [float(sigma[0]) for _, sigma, _ in watched.calls[1:]]
                wanted = [(x0 + s * z)[..., 4:] for s, z in zip(levels, noises, strict=True)]
                facts["noise"] = max(largest(g, w) for g, w in zip(given, wanted, strict=True))
    return facts


def stream(bench: Bench) -> Facts:
    """Five frames in a pipeline of four steps against each frame alone."""
    facts: Facts = {}
    for name, inputs in {"plain": {}, "guided": {"cfg": 1.5, "gamma": 0.3}}.items():
        watched = bench.watch()
        latent = {"samples": frames(5)}
        made = bench.sample(watched.model, "LCMLoRA_StreamBatch", latent=latent, denoise=0.8, **inputs)
        alone = [
            bench.sample(latent={"samples": frames(5)[i : i + 1], "batch_index": [i]}, denoise=0.8, **inputs)
            for i in range(5)
        ]
        facts[name] = {
            "calls": len(watched.calls),
            "rows": max(len(x) // len(kinds) for x, _, kinds in watched.calls),
            "apart": largest(made, torch.cat(alone)),
        }
    two = [[torch.cat([c[0], c[0]]), c[1]] for c in bench.positive]
    masked = {"samples": frames(2), "noise_mask": torch.ones(1, 64, 64)}
    return facts | {
        "mask": message(lambda: bench.sample(node="LCMLoRA_StreamBatch", latent=masked)),
        "two rows": message(lambda: bench.sample(node="LCMLoRA_StreamBatch", latent=empty(2), positive=two)),
    }


def previews(bench: Bench) -> Facts:
    """What the preview is given at each step, against the result."""
    import latent_preview

    shown = []

    @contextmanager
    def watched_previews() -> Iterator[None]:
        prepare = latent_preview.prepare_callback
        latent_preview.prepare_callback = lambda model, steps: lambda i, x0, x, total: shown.append((i, total, x0))
        try:
            yield
        finally:
            latent_preview.prepare_callback = prepare

    with watched_previews():
        made = bench.sample()
        steps = [(i, total) for i, total, _ in shown]
        last = largest(shown[-1][2] / 0.18215, made)
        shown.clear()
        bench.sample(node="LCMLoRA_StreamBatch", latent=empty(3))
    return {"steps": steps, "last": last, "stream": [(i, total) for i, total, _ in shown]}


def interrupt(bench: Bench) -> Facts:
    """An interrupt during the second evaluation: evaluations made, and what is left behind."""
    import comfy.model_management as management

    core = {
        "model": bench.plain, "positive": bench.positive, "negative": bench.negative, "latent_image": empty(1),
        "seed": 5, "steps": 4, "cfg": 2.0, "sampler_name": "euler", "scheduler": "normal",
    }  # fmt: skip
    before = bench.sample(), bench.host.run("KSampler", **core)[0]["samples"]
    watched = Watched(bench.model, lambda calls: management.interrupt_current_processing(calls == 1))
    stopped = False
    try:
        bench.sample(watched.model, steps=8)
    except management.InterruptProcessingException:
        stopped = True
    after = bench.sample(), bench.host.run("KSampler", **core)[0]["samples"]
    return {
        "stopped": stopped,
        "evaluations": len(watched.calls),
        "sampling": type(bench.plain.get_model_object("model_sampling")).__name__,
        "changed": [largest(a, b) for a, b in zip(before, after, strict=True)],
    }


def refused(bench: Bench) -> Facts:
    """Bad inputs: the message of each, and how often the UNet was evaluated for all of them."""
    run = bench.host.run
    watched = bench.watch()
    plain = Watched(bench.plain)
    discrete = extra("nodes_model_advanced", "ModelSamplingDiscrete")
    one_step = run(discrete, model=plain.model, sampling="img_to_img")[0]
    nan = float("nan")
    facts: Facts = {
        name: message(lambda inputs=inputs: bench.sample(**{"model": watched.model} | inputs))
        for name, inputs in {
            "steps": {"steps": 51},
            "strength": {"steps": 8, "denoise": 0.1},
            "words": {"timesteps": "999, high"},
            "ascending": {"timesteps": "259, 999"},
            "range": {"timesteps": "1000, 5"},
            "nothing left": {"timesteps": "999", "denoise": 0.5},
            "sampling": {"model": one_step},
            "channels": {"latent": {"samples": torch.ones(1, 16, 8, 8)}},
            "seeds": {"seeds": "1, 2"},
            "long seed": {"seeds": str(2**64)},
            "negative seed": {"seeds": "-1"},
            "endless seed": {"seeds": "9" * 400},
            "many seeds": {"seeds": "1, " * 5000},
            "exponent": {"timesteps": "1e3, 5"},
            "hexadecimal": {"timesteps": "0x10"},
            "many timesteps": {"timesteps": "5 " * 1001},
            "long text": {"timesteps": "5" * 100_001},
            "half a character": {"timesteps": "\ud800"},
            "literal model": {"model": 5},
            "literal positive": {"positive": "cat"},
            "literal latent": {"latent": "x" * 1000},
            "no samples": {"latent": {}},
            "list of samples": {"latent": {"samples": [[1.0]]}},
            "frames of a video": {"latent": {"samples": torch.ones(1, 4, 2, 8, 8)}},
            "no images": {"latent": {"samples": torch.ones(0, 4, 8, 8)}},
            "nan latent": {"latent": {"samples": torch.full((1, 4, 8, 8), nan)}},
            "nan mask": {"latent": empty(1) | {"noise_mask": torch.full((1, 64, 64), nan)}},
            "batch_index": {"latent": empty(2) | {"batch_index": [0]}},
            "steps of text": {"steps": "4"},
            "steps below": {"steps": -1},
            "cfg of truth": {"cfg": True},
            "no such input": {"sampler": "euler"},
            "gamma": {"gamma": nan},
            "guidance_until": {"guidance_until": nan},
        }.items()
    }
    for name, inputs in {
        "choice": ("LCMLoRA_Loader", {"lora_name": "../style.safetensors"}),
        "many omega": ("LCMLoRA_GuidanceEmbedding", {"file": "pocket.safetensors", "omega_per_image": "5 " * 5000}),
        "omega of text": ("LCMLoRA_GuidanceEmbedding", {"file": "pocket.safetensors", "omega_per_image": "high"}),
    }.items():
        facts[name] = message(lambda inputs=inputs: run(inputs[0], model=plain.model, **inputs[1]))
    facts["longest"] = max(map(len, map(str, facts.values())))
    projection = torch.zeros(320, 256)
    embed = bench.host.pack.nodes.host.guidance.with_guidance_embedding
    for name, args in {
        "omega nan": (projection, [nan]),
        "omega negative": (projection, [7.5, -1.0]),
        "omega width": (torch.zeros(64, 256), [7.5]),
    }.items():
        facts[name] = message(lambda args=args: embed(plain.model, *args))
    told = embed(bench.plain, projection, [1.0, 2.0])
    facts["omega batch"] = message(lambda: bench.sample(told, latent=empty(3)))
    return facts | {"evaluations": watched.rows + plain.rows}


def warnings(bench: Bench) -> Facts:
    """What is said of choices that will look wrong, by what was chosen."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    custom = extra("nodes_custom_sampler", "SamplerCustom")
    (sigmas,) = bench.host.run("LCMLoRA_Schedule", model=bench.model, steps=1)
    (sampler,) = bench.host.run("LCMLoRA_SamplerSelect")
    given = {
        "add_noise": True, "noise_seed": 1, "cfg": 1.0, "positive": bench.positive, "negative": bench.negative,
        "sampler": sampler, "sigmas": sigmas, "latent_image": empty(1),
    }  # fmt: skip
    facts = {}
    for name, act in {
        "cfg 2": lambda: bench.sample(steps=1, cfg=2.0),
        "cfg 2.5": lambda: bench.sample(steps=1, cfg=2.5),
        "trailing": lambda: bench.sample(timesteps="999, 749, 499, 249"),
        "off the grid": lambda: bench.sample(timesteps="999, 748"),
        "prepared": lambda: bench.host.run(custom, model=bench.model, **given),
        "plain": lambda: bench.host.run(custom, model=bench.plain, **given),
    }.items():
        said.clear()
        act()
        facts[name] = list(said)
    logging.getLogger().removeHandler(handler)
    return facts


def picture(bench: Bench) -> Facts:
    """Three cats of seed 35 as rows of 8-bit values, for another process to compare."""
    vae = bench.host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")[2]
    torch.set_num_threads(1)
    made = bench.sample(latent=empty(3), seed=35, negative=bench.negative)
    (images,) = bench.host.run("VAEDecode", samples={"samples": made}, vae=vae)
    return {"rows": (images * 255).round().to(torch.uint8).flatten(1).tolist()}


CHECKS = (
    guidance, other_guidance, grid, predictions, seeds, long_seeds, inpainting, stream, previews, interrupt, refused,
    warnings, picture,
)  # fmt: skip

if __name__ == "__main__":
    bench = Bench(load_host(Path(sys.argv[1]), Path(sys.argv[2])))
    print(json.dumps({check.__name__: check(bench) for check in CHECKS}))
