"""What hooks of LoRA vectors do inside the host, against models in stages: prints facts as JSON, a key a function.

python tests/host/hooks.py COMFYUI BASE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[2]))

from tests.host.features import Bench, Facts, empty, extra, frames, largest, message  # noqa: E402
from tools.inprocess import load_host_of_arguments  # noqa: E402


class Hooked(Bench):
    """The pocket model with vectors on the conditionings in place of the model."""

    def __init__(self, host) -> None:
        super().__init__(host)
        self.clip = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")[1]
        self.style, self.lcm = (
            host.run("LCMLoRA_LoadVector", lora_name=f"pocket_{name}.safetensors")[0] for name in ("style", "lcm")
        )

    def hooks(self, lora=None, **inputs):
        return self.host.run("LCMLoRA_Hooks", lora=lora or self.style, **inputs)[0]

    def on(self, hooks, **inputs) -> dict:
        """The two conditionings with hooks."""
        pair = extra("nodes_hooks", "PairConditioningSetProperties")
        given = {"positive_NEW": self.positive, "negative_NEW": self.negative, "strength": 1.0}
        positive, negative = self.host.run(pair, hooks=hooks, set_cond_area="default", **given | inputs)
        return {"positive": positive, "negative": negative}

    def patched(self, strength: float, lora=None):
        return self.host.run("LCMLoRA_ApplyVector", model=self.model, lora=lora or self.style, strength=strength)[0]

    def custom(self, model, sigmas: Tensor, latent: dict, add_noise: bool = True, sampler=None, **given) -> dict:
        sampler = sampler or self.host.run(extra("nodes_custom_sampler", "KSamplerSelect"), sampler_name="euler")[0]
        node = extra("nodes_custom_sampler", "SamplerCustom")
        inputs = {"positive": self.positive, "negative": self.negative} | given
        return self.host.run(
            node, model=model, add_noise=add_noise, noise_seed=5, cfg=2.0, sampler=sampler, sigmas=sigmas,
            latent_image=latent, **inputs,
        )[0]  # fmt: skip


def stages(bench: Hooked) -> Facts:
    """A strength that changes before the third of four steps against two samplers with a model each, by sampler."""
    early, late = 0.3, 1.1
    given = {"schedule": f"step 1: {early}, step 3: {late}"}
    conditionings, models = bench.on(bench.hooks(**given)), (bench.patched(early), bench.patched(late))
    sigmas = bench.host.run("LCMLoRA_Schedule", model=bench.model)[0]
    lcm = bench.host.run("LCMLoRA_SamplerSelect", gamma=1.0)[0]

    def sampler(hooked: bool) -> Tensor:
        if hooked:
            return bench.sample(cfg=1.5, **conditionings)
        first = bench.sample(models[0], cfg=1.5, end_at_step=2, return_with_leftover_noise=True)
        return bench.sample(models[1], cfg=1.5, start_at_step=2, add_noise=False, latent={"samples": first})

    def custom(hooked: bool, which=None) -> Tensor:
        if hooked:
            return bench.custom(bench.model, sigmas, empty(1), sampler=which, **conditionings)["samples"]
        first = bench.custom(models[0], sigmas[:3], empty(1), sampler=which)
        return bench.custom(models[1], sigmas[2:], first, add_noise=False, sampler=which)["samples"]

    facts: Facts = {}
    for name, run in {
        "LCM Sampler": sampler, "euler": custom, "LCM Sampler Select": lambda hooked: custom(hooked, lcm),
    }.items():  # fmt: skip
        made, wanted = run(True), run(False)
        facts[name] = {"apart": largest(made, wanted), "size": wanted.abs().max().item()}
    beside = bench.sample(cfg=1.5, **bench.on(bench.hooks(applied_to="activations", **given)))
    return facts | {"again": largest(run(True), made), "beside": largest(beside, sampler(False))}


def ksampler(bench: Hooked) -> Facts:
    """The same with KSampler and KSampler (Advanced)."""
    early, late = 0.3, 1.1
    given = {"cfg": 2.0, "sampler_name": "euler", "scheduler": "karras", "steps": 4}
    pair = bench.on(bench.hooks(schedule=f"0: {early}, 0.5: {late}"))
    run, plain = bench.host.run, {"positive": bench.positive, "negative": bench.negative}
    made = run("KSampler", model=bench.model, seed=5, latent_image=empty(1), denoise=1.0, **given, **pair)[0]["samples"]
    first = run("KSamplerAdvanced", model=bench.patched(early), add_noise="enable", noise_seed=5,
                latent_image=empty(1), start_at_step=0, end_at_step=2, return_with_leftover_noise="enable",
                **given, **plain)[0]  # fmt: skip
    wanted = run("KSamplerAdvanced", model=bench.patched(late), add_noise="disable", noise_seed=5, latent_image=first,
                 start_at_step=2, end_at_step=4, return_with_leftover_noise="disable", **given, **plain)[0]  # fmt: skip
    return {"apart": largest(made, wanted["samples"]), "size": made.abs().max().item()}


def shares(bench: Hooked) -> Facts:
    """A quarter of LCM's four steps, by our schedule and by the host's keyframe of 0.25, against step 2."""
    wanted = bench.sample(**bench.on(bench.hooks(schedule="step 1: 0, step 2: 1")))
    keyframe = extra("nodes_hooks", "CreateHookKeyframe")
    run = bench.host.run
    frames = run(keyframe, strength_mult=0.0, start_percent=0.0)[0]
    frames = run(keyframe, strength_mult=1.0, start_percent=0.25, prev_hook_kf=frames)[0]
    hosts = run(extra("nodes_hooks", "SetHookKeyframes"), hooks=bench.hooks(), hook_kf=frames)[0]
    third = bench.sample(**bench.on(bench.hooks(schedule="step 1: 0, step 3: 1")))
    return {
        "ours": largest(bench.sample(**bench.on(bench.hooks(schedule="0: 0, 0.25: 1"))), wanted),
        "host's": largest(bench.sample(**bench.on(hosts)), third),
        "step 3": largest(third, wanted),
    }


def parts(bench: Hooked) -> Facts:
    """Parts of a run with the whole's sigmas connected, the last of one step and made twice, against the whole."""
    sigmas = bench.host.run("LCMLoRA_Schedule", model=bench.model)[0]
    schedule = "step 1: 0, step 2: 1, step 4: 0.2"
    whole = bench.sample(**bench.on(bench.hooks(schedule=schedule)))
    pair = bench.on(bench.hooks(schedule=schedule, sigmas=sigmas))
    left = bench.sample(end_at_step=3, return_with_leftover_noise=True, **pair)
    rest = [bench.sample(start_at_step=3, add_noise=False, latent={"samples": left}, **pair) for _ in range(2)]
    return {"apart": [largest(each, whole) for each in rest]}


def several(bench: Hooked) -> Facts:
    """The accelerator for two steps in the weights, and beside them a style from the second, against three stages."""
    accelerator = bench.hooks(bench.lcm, schedule="step 1: 1, step 3: 0")
    given = {"strength": 0.8, "schedule": "step 1: 0, step 2: 1", "applied_to": "activations"}
    made = bench.sample(bench.plain, **bench.on(bench.hooks(prev_hooks=accelerator, **given)))
    fast, both, slow = (
        bench.host.run("LCMLoRA_ApplyVector", model=model, lora=lora, strength=strength)[0]
        for model, lora, strength in (
            (bench.plain, bench.lcm, 1.0),
            (bench.model, bench.style, 0.8),
            (bench.plain, bench.style, 0.8),
        )
    )
    latent = empty(1)
    for i, model in enumerate((fast, both, slow)):
        end = {"end_at_step": i + 1, "return_with_leftover_noise": True} if i < 2 else {}
        latent = {"samples": bench.sample(model, latent=latent, start_at_step=i, add_noise=i == 0, **end)}
    return {"apart": largest(made, latent["samples"])}


def region(bench: Hooked) -> Facts:
    """A style on the left half alone: one step, against each half of a whole model's."""
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    combine = extra("nodes_hooks", "ConditioningSetPropertiesAndCombine")
    styled, plain = bench.sample(bench.patched(1.0), steps=1), bench.sample(steps=1)
    facts: Facts = {"between": largest(styled, plain)}
    for place in ("weights", "activations"):
        left = bench.on(bench.hooks(applied_to=place), mask=mask)["positive"]
        both = bench.host.run(
            combine, cond=left, cond_NEW=bench.positive, strength=1.0, set_cond_area="default", mask=1 - mask
        )  # fmt: skip
        made = bench.sample(steps=1, positive=both[0])
        facts[place] = [largest(made[..., :4], styled[..., :4]), largest(made[..., 4:], plain[..., 4:])]
    return facts


def kinds(bench: Hooked) -> Facts:
    """Spellings and kinds that the host skips, as hooks against Apply LoRA Vector, and whether anything changed."""
    modules = bench.style.vector.modules
    name, factors = next((name, each) for name, each in modules.items() if name.endswith("attn1.to_q"))
    up, down = (getattr(factors, key).float() for key in ("up", "down"))
    generator = torch.Generator().manual_seed(1)
    rows = 1 + torch.rand(len(up), 1, generator=generator)
    hada = [torch.randn(*size, generator=generator) for size in ((len(up), 4), (4, down.shape[1])) * 2]
    path = name.removeprefix("unet.")
    loras = {
        "style": bench.style,
        "PEFT": {f"base_model.model.{path}.lora_A.weight": down, f"base_model.model.{path}.lora_B.weight": up},
        "DoRA": {f"unet.{path}.lora_A.weight": down, f"unet.{path}.lora_B.weight": up, f"unet.{path}.dora_scale": rows},
        "LoHa": {f"lora_unet_{path.replace('.', '_')}.hada_{key}": part
                 for key, part in zip(("w1_a", "w1_b", "w2_a", "w2_b"), hada, strict=True)},
    }  # fmt: skip
    before, plain = weights(bench.model), bench.sample(steps=1)
    facts: Facts = {}
    for kind, lora in loras.items():
        made = bench.sample(steps=1, **bench.on(bench.hooks(lora, strength=0.7)))
        wanted = bench.sample(bench.patched(0.7, lora), steps=1)
        beside = lambda lora=lora: bench.on(bench.hooks(lora, strength=0.7, applied_to="activations"))  # noqa: E731
        facts[kind] = {
            "apart": largest(made, wanted),
            "changed": largest(made, plain),
            "beside": message(beside) if kind == "DoRA" else largest(bench.sample(steps=1, **beside()), wanted),
        }
    bench.sample(steps=1)
    return facts | {"left": max(largest(a, b) for a, b in zip(weights(bench.model), before, strict=True))}


def weights(model) -> list[Tensor]:
    return [weight.clone() for weight in model.model.diffusion_model.state_dict().values()]


def paths(bench: Hooked) -> Facts:
    """Paths beside a layer against its weight with the difference in it: rows, columns, halves, convolutions."""
    activations, targets = (sys.modules[f"lcm_lora_pack.nodes.host.{name}"] for name in ("activations", "targets"))
    core = sys.modules["lcm_lora_pack.lcm_core.lora.file"]
    generator = torch.Generator().manual_seed(4)
    cases = {
        "linear": (torch.nn.Linear(6, 8), None, (2, 5, 6)),
        "rows": (torch.nn.Linear(6, 12), ((0, 4, 4),), (2, 5, 6)),
        "columns": (torch.nn.Linear(12, 8), ((1, 6, 6),), (2, 5, 12)),
        "halves": (torch.nn.Linear(6, 8), (None, targets.exchange_halves), (2, 5, 6)),
        "conv": (torch.nn.Conv2d(6, 8, 3, stride=2, padding=1, padding_mode="circular"), None, (2, 6, 8, 8)),
        "conv rows": (torch.nn.Conv2d(6, 8, 1), ((0, 2, 4),), (2, 6, 4, 4)),
        "conv 3d": (torch.nn.Conv3d(6, 8, (1, 3, 3), padding=(0, 1, 1), dilation=1), None, (1, 6, 2, 4, 4)),
    }
    facts: Facts = {}
    for name, (layer, rest, shape) in cases.items():
        rows, part = layer.weight.shape[0], rest and rest[0]
        if part:
            rows = part[2] if part[0] == 0 else rows
        inner = part[2] if part and part[0] == 1 else layer.weight.shape[1]
        factors = {"lora_up": torch.randn(rows, 2, generator=generator),
                   "lora_down": torch.randn(2, inner, *layer.weight.shape[2:], generator=generator)}  # fmt: skip
        stored = {f"diffusion_model.x.{key}.weight": value for key, value in factors.items()}
        file = core.LoRAFile.of(stored | {"diffusion_model.x.alpha": torch.tensor(3.0)})
        path = activations.path_at(
            torch.nn.ModuleDict({"x": layer}), ("x.weight", *rest) if rest else "x.weight", file.modules[0]
        )
        x = torch.randn(*shape, generator=generator)
        made = path.add(layer(x), 0.5 * path(x, path.down, path.up))
        delta = 0.75 * (factors["lora_up"] @ factors["lora_down"].flatten(1)).unflatten(
            1, factors["lora_down"].shape[1:]
        )
        with torch.no_grad():
            changed = layer.weight.narrow(*part) if part else layer.weight
            changed += rest[1](delta) if rest and len(rest) > 1 else delta
            facts[name] = largest(made, layer(x))
    return facts


def text_encoder(bench: Hooked) -> Facts:
    """A LoRA of both as hooks on a CLIP, whether the CLIP is scheduled or not: what the text and the model get."""
    run = bench.host.run
    text = {"lora_te_text_model_encoder_layers_0_mlp_fc2.diff_b": frames(1).flatten().repeat(3)}
    both = dict(bench.style) | text
    given = {"strength": 0.5, "schedule": "step 1: 0, step 3: 1"}
    clip = run("LCMLoRA_ApplyVector", model=bench.model, lora=both, strength=0.5, clip=bench.clip)[2]
    wanted = run("CLIPTextEncode", clip=clip, text="cat")[0]
    late = bench.sample(**bench.on(bench.hooks(**given), positive_NEW=wanted))
    facts: Facts = {"changed": largest(bench.positive[0][0], wanted[0][0])}
    for scheduled in (False, True):
        hooked = run(
            extra("nodes_hooks", "SetClipHooks"), clip=bench.clip, apply_to_conds=True, schedule_clip=scheduled,
            hooks=bench.hooks(both, **given),
        )[0]  # fmt: skip
        first = run("CLIPTextEncode", clip=hooked, text="cat")[0]
        made = bench.sample(positive=first)
        again = run("CLIPTextEncode", clip=hooked, text="cat")[0]
        facts[f"scheduled {scheduled}"] = {
            "encoded": [largest(each, wanted[0][0]) for each, _ in [*first, *again]],
            "made": largest(made, late),
        }
    return facts | {"left": largest(run("CLIPTextEncode", clip=bench.clip, text="cat")[0][0][0], bench.positive[0][0])}


def refusals(bench: Hooked) -> Facts:
    """What is said of schedules and LoRAs that don't fit."""
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    wrong = {f"{name}.lora_A.weight": torch.ones(2, 7), f"{name}.lora_B.weight": torch.ones(7, 2)}
    other = {f"diffusion_model.double_blocks.9.img_attn.qkv.lora_{key}.weight": torch.ones(*size)
             for key, size in {"A": (2, 64), "B": (192, 2)}.items()}  # fmt: skip
    sigmas = bench.host.run("LCMLoRA_Schedule", model=bench.model)[0]
    beyond = {"schedule": "step 1: 0, step 9: 1"}

    def with_hooks(lora=None, node: str = "LCMLoRA_Sampler", **inputs) -> Callable[[], object]:
        return lambda: bench.sample(node=node, **bench.on(bench.hooks(lora, **inputs)))

    def unreached() -> None:
        activations = sys.modules["lcm_lora_pack.nodes.host.activations"]
        paths = activations.Paths(bench.style.vector, sys.modules["lcm_lora_pack.nodes.host.hooks"].places)
        executor = type("Executor", (), {"class_obj": bench.model.model, "__call__": lambda self: None})()
        paths.run(1.0, executor)

    acts = {
        "step 9": with_hooks(**beyond),
        "step 9 of sigmas": lambda: bench.hooks(sigmas=sigmas, **beyond),
        "not finite": lambda: bench.hooks(sigmas=sigmas * torch.nan),
        "no hooks": lambda: bench.hooks(prev_hooks="x"),
        "no sigmas": lambda: bench.hooks(sigmas=sigmas[:1], **beyond),
        "size": with_hooks(wrong),
        "architecture": with_hooks(other),
        "grouped": lambda: sys.modules["lcm_lora_pack.nodes.host.activations"].path_at(
            torch.nn.ModuleDict({"x": torch.nn.Conv2d(4, 4, 3, groups=2)}), "x.weight", None
        ),
        "compiled": lambda: bench.sample(
            bench.host.run(extra("nodes_torch_compile", "TorchCompileModel"), model=bench.model, backend="inductor")[0],
            **bench.on(bench.hooks(applied_to="activations")),
        ),
        "unreached": unreached,
        "stream": with_hooks(node="LCMLoRA_StreamBatch", schedule="0: 0, 0.5: 1"),
    }
    facts: Facts = {name: message(act) for name, act in acts.items()}
    plain = bench.sample(node="LCMLoRA_StreamBatch", **bench.on(bench.hooks()))
    return facts | {"constant stream": largest(plain, bench.sample(bench.patched(1.0)))}


def main() -> None:
    host = load_host_of_arguments(__doc__)
    torch.set_num_threads(1)
    bench = Hooked(host)
    tests = (stages, ksampler, shares, parts, several, region, kinds, paths, text_encoder, refusals)
    print(json.dumps({test.__name__: test(bench) for test in tests}))


if __name__ == "__main__":
    main()
