"""LoRA files of every dialect and kind through our nodes and core's, in ComfyUI's own Python.

python -m tests.host.dialects COMFYUI FOLDER    reads the files that test_dialects.py made, writes FOLDER/report.json

The models are the host's own with every block of their family, at a tenth of its width and with random weights. Errors
are the largest of all weights against W + Delta W, over the largest Delta W.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lcm_core.lora import LoRAVector
from tests.host import whole_weights
from tools.inprocess import Host, load_host

UNET = {
    "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "legacy": False, "num_heads": 8,
    "dtype": torch.float32, "use_spatial_transformer": True, "context_dim": 48,
    "num_res_blocks": [2, 2, 2, 2], "channel_mult": [1, 2, 4, 4],
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0], "transformer_depth_middle": 1,
    "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
}  # fmt: skip
XL = UNET | {
    "context_dim": 64, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 16,
    "num_classes": "sequential", "adm_in_channels": 40, "num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4],
}  # fmt: skip
CONFIGS = {
    "SD15": UNET,
    "SDXL": XL | {
        "transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10,
        "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
    },
    "SSD1B": XL | {
        "transformer_depth": [0, 0, 2, 2, 4, 4], "transformer_depth_middle": -1,
        "transformer_depth_output": [0, 0, 0, 1, 1, 2, 10, 4, 4],
    },
    "SD3": {
        "input_size": None, "in_channels": 16, "depth": 2, "num_patches": 64, "pos_embed_max_size": 8,
        "adm_in_channels": 64, "context_embedder_config": {
            "target": "torch.nn.Linear", "params": {"in_features": 96, "out_features": 128},
        },
    },
}  # fmt: skip
NARROW = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
CPU = torch.device("cpu")


def randomize(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.requires_grad_(False).parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def make_model(family: str) -> Any:
    """A MODEL of the family, without a checkpoint."""
    import comfy.model_patcher
    import comfy.supported_models

    model = getattr(comfy.supported_models, family)(dict(CONFIGS[family])).get_model({}, "", device=CPU).float()
    randomize(model.diffusion_model, 1)
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    return patcher(model, load_device=CPU, offload_device=CPU)


def make_clip(family: str) -> Any:
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip

    model = comfy.sd1_clip.SD1ClipModel if family == "SD15" else comfy.sdxl_clip.SDXLClipModel
    target = SimpleNamespace(params={}, clip=model, tokenizer=lambda **_: None)
    options = {"dtype": torch.float32, "clip_l_model_config": NARROW, "clip_g_model_config": NARROW}
    clip = comfy.sd.CLIP(target, model_options=options)
    randomize(clip.cond_stage_model, 2)
    return clip


def changed(patcher: Any) -> dict[str, Tensor]:
    """Key -> the weight as the host computes it, of all that has patches."""
    import comfy.lora
    import comfy.utils

    weights = {}
    for key, patches in patcher.patches.items():
        weight = comfy.utils.get_attr(patcher.model, key).detach().float().clone()
        weights[key] = comfy.lora.calculate_weight(patches, weight, key)
    return weights


def error(patcher: Any, expected: dict[str, Tensor]) -> float:
    """How far the patched weights are from the expected, which must be of the same keys."""
    import comfy.utils

    found = changed(patcher)
    if found.keys() != expected.keys():
        return float("inf")
    size = max(float((expected[key] - comfy.utils.get_attr(patcher.model, key)).abs().max()) for key in expected)
    return max(float((found[key] - expected[key]).abs().max()) for key in expected) / size


def weight_key(name: str, ldm: dict[str, str]) -> str:
    """The host's key for a module of test_dialects.py, by the host's own tables."""
    for prefix, place in (("unet.", "diffusion_model."), ("text_encoder.", "clip_l."), ("text_encoder_2.", "clip_g.")):
        if name.startswith(prefix):
            path = f"{name.removeprefix(prefix)}.weight"
            return place + (ldm[path] if place == "diffusion_model." else f"transformer.{path}")
    raise KeyError(name)


def spellings(name: str, key: str, encoders: int) -> dict[str, str]:
    """Dialect -> what it calls a module of a UNet or a text encoder."""
    native = key.removesuffix(".weight")
    component, _, path = name.partition(".")
    if component == "unet":
        ldm = native.removeprefix("diffusion_model.")
        return {
            "peft": name,
            "base_model": f"base_model.model.{path}",
            "base_model in unet": f"unet.base_model.model.{path}",
            "diffusers": name,
            "kohya": f"lora_unet_{path.replace('.', '_')}",
            "kohya ldm": f"lora_unet_{ldm.replace('.', '_')}",
            "lycoris": f"lycoris_{path.replace('.', '_')}",
            "native": native,
        }
    kohya = {"text_encoder": "lora_te1_" if encoders == 2 else "lora_te_", "text_encoder_2": "lora_te2_"}[component]
    in_kohya = kohya + path.replace(".", "_")
    text = {"native": f"text_encoders.{native}", **dict.fromkeys(("kohya", "kohya ldm", "lycoris"), in_kohya)}
    return {**dict.fromkeys(("peft", "base_model", "base_model in unet", "diffusers"), name), **text}


SUFFIXES = {
    "peft": ("lora_A.weight", "lora_B.weight"),
    "base_model": ("lora_A.default.weight", "lora_B.default.weight"),
    "base_model in unet": ("lora_A.weight", "lora_B.weight"),
    "diffusers": ("lora.down.weight", "lora.up.weight"),
}


def every_dialect(host: Host, loras: Path, family: str) -> dict[str, Any]:
    """Each dialect by Load Acceleration LoRA, the PEFT one and our own kohya and native files by core's Load LoRA."""
    import comfy.utils

    model, clip = make_model(family), make_clip(family)
    factors = load_file(loras / f"{family}.safetensors")
    names = sorted({name.rpartition(".lora_")[0] for name in factors})
    ldm = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    encoders = len({name.partition(".")[0] for name in names}) - 1
    expected: dict[str, dict[str, Tensor]] = {"model": {}, "clip": {}}
    files: dict[str, dict[str, Tensor]] = {}
    for name in names:
        key = weight_key(name, ldm)
        owner, place = (model.model, "model") if name.startswith("unet.") else (clip.cond_stage_model, "clip")
        down, up = factors[f"{name}.lora_A.weight"], factors[f"{name}.lora_B.weight"]
        weight = comfy.utils.get_attr(owner, key).detach()
        expected[place][key] = weight + 0.5 * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        for dialect, spelling in spellings(name, key, encoders).items():
            suffixes = SUFFIXES.get(dialect, ("lora_down.weight", "lora_up.weight"))
            tensors = {f"{spelling}.{suffixes[0]}": down, f"{spelling}.{suffixes[1]}": up}
            files.setdefault(dialect, {}).update(tensors)
            if dialect not in SUFFIXES:
                files[dialect][f"{spelling}.alpha"] = torch.tensor(0.5 * len(down))
    metadata = {"lora_adapter_metadata": json.dumps({"lora_alpha": 0.5})}
    report: dict[str, Any] = {"dialects": {}, "core": {}}
    for dialect, tensors in files.items():
        name = f"{family} {dialect}.safetensors"
        save_file(tensors, loras / name, metadata)
        patched, lora, text, patched_clip = host.run("LCMLoRA_Loader", model=model, lora_name=name, clip=clip)
        report["dialects"][dialect] = {
            "modules": [len(patched.patches), len(patched_clip.patcher.patches)],
            "errors": [error(patched, expected["model"]), error(patched_clip.patcher, expected["clip"])],
            "report": text,
        }
    again, _, again_clip = host.run("LCMLoRA_ApplyVector", model=model, lora=lora, strength=1.0, clip=clip)
    report["applied"] = [error(again, expected["model"]), error(again_clip.patcher, expected["clip"])]
    alone, _, text, none = host.run("LCMLoRA_Loader", model=model, lora_name=name)
    report["without clip"] = [error(alone, expected["model"]), text, none is None]
    vector = LoRAVector.load(loras / f"{family} kohya.safetensors")
    vector.save(loras / f"{family} our kohya.safetensors", "kohya")
    (2 * vector - vector).save(loras / f"{family} our native.safetensors", "native")
    for dialect in ("peft", "base_model", "our kohya", "our native"):
        patched, patched_clip = host.run(
            "LoraLoader", model=model, clip=clip, lora_name=f"{family} {dialect}.safetensors",
            strength_model=1.0, strength_clip=1.0,
        )  # fmt: skip
        report["core"][dialect] = {
            "modules": len(patched.patches),
            "errors": [error(patched, expected["model"]), error(patched_clip.patcher, expected["clip"])],
        }
    report["left alone"] = not model.patches and not clip.patcher.patches
    return report


def kinds(model: Any) -> dict[str, dict[str, Tensor]]:
    """Adapters of one file each: module and role -> tensor, modules in diffusers' names."""
    linear, conv = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.1.resnets.0.conv1"
    generator = torch.Generator().manual_seed(3)

    def made(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return {role: 0.3 * torch.randn(shape, generator=generator) for role, shape in shapes.items()}

    def factors(out: int, *rest: int) -> dict[str, Tensor]:
        return made({"lora_down.weight": (2, *rest), "lora_up.weight": (out, 2, *[1] * (len(rest) - 1))})

    files = {
        "loha": {
            linear: made({"hada_w1_a": (128, 2), "hada_w1_b": (2, 128), "hada_w2_a": (128, 2), "hada_w2_b": (2, 128)}),
            conv: made({
                "hada_w1_a": (2, 64), "hada_w1_b": (2, 32), "hada_w2_a": (2, 64), "hada_w2_b": (2, 32),
                "hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3),
            }),
        },
        "lokr": {
            linear: made({"lokr_w1": (4, 4), "lokr_w2_a": (32, 2), "lokr_w2_b": (2, 32)}),
            conv: made({"lokr_w1": (4, 4), "lokr_w2": (16, 8, 3, 3)}),
        },
        "tucker": {conv: made({
            "lora_down.weight": (2, 32, 1, 1), "lora_mid.weight": (2, 2, 3, 3), "lora_up.weight": (64, 2, 1, 1),
        })},
        "flattened": {conv: factors(64, 32 * 9), "mid_block.attentions.0.proj_in": factors(128, 128)},
        "dora per input": {
            linear: factors(128, 128) | {"dora_scale": torch.rand(1, 128, generator=generator)},
            conv: factors(64, 32, 3, 3) | {"dora_scale": torch.rand(1, 32, 1, 1, generator=generator)},
        },
        "glora": {
            linear: made({"a1.weight": (128, 3), "a2.weight": (3, 128), "b1.weight": (128, 3), "b2.weight": (3, 128)}),
        },
        "dense": {
            linear: made({"diff": (128, 128)}), conv: made({"diff": (64, 32, 3, 3), "diff_b": (64,)}),
            "down_blocks.1.resnets.0.norm1": made({"w_norm": (32,), "b_norm": (32,)}),
            "mid_block.attentions.0.norm": made({"diff": (128,), "diff_b": (128,)}),
            "time_embedding.linear_1": made({"diff_b": (128,)}),
        },
    }  # fmt: skip
    for kind, modules in files.items():
        for roles in modules.values():
            if kind != "dense":
                roles["alpha"] = torch.tensor(1.5)
    return {
        kind: {f"{m} {r}": t for m, roles in mods.items() for r, t in roles.items()} for kind, mods in files.items()
    }


def every_kind(host: Host, loras: Path) -> dict[str, Any]:
    """Files under names that core does not know by our nodes, against the same tensors in kohya's names by core's."""
    model = make_model("SD15")
    report = {}
    for kind, tensors in kinds(model).items():
        ours, theirs = {}, {}
        for place, tensor in tensors.items():
            module, role = place.split()
            ours[f"base_model.model.{module}.{role}"] = tensor
            theirs[f"lora_unet_{module.replace('.', '_')}.{role}"] = tensor
        save_file(ours, loras / f"{kind}.safetensors")
        save_file(theirs, loras / f"{kind} kohya.safetensors")
        errors = []
        for strength in (1.0, -0.7):
            (core,) = host.run(
                "LoraLoaderModelOnly", model=model, lora_name=f"{kind} kohya.safetensors", strength_model=strength
            )
            expected = changed(core)
            for name in (f"{kind}.safetensors", f"{kind} kohya.safetensors"):
                patched, lora, text, _ = host.run("LCMLoRA_Loader", model=model, lora_name=name, strength=strength)
                again, *_ = host.run("LCMLoRA_ApplyVector", model=model, lora=lora, strength=strength)
                errors += [error(patched, expected), error(again, expected)]
        report[kind] = {"parameters": len(expected), "errors": errors, "report": text}
    return report


def peft_files(host: Host, folder: Path) -> dict[str, Any]:
    """PEFT's own files on its own weights, against what PEFT merges; DoRA also by core's node under kohya's names."""
    import comfy.utils

    model = make_model("SD15")
    ldm = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    keys = {name: f"diffusion_model.{key}" for name, key in ldm.items()}
    for name, tensor in load_file(folder / "base.safetensors").items():
        comfy.utils.copy_to_param(model.model, keys[name], tensor)
    report: dict[str, Any] = {}
    for merged in sorted(folder.glob("merged *.safetensors")):
        kind = merged.stem.removeprefix("merged ")
        expected = {keys[name]: tensor for name, tensor in load_file(merged).items()}
        name = f"{kind}/adapter_model.safetensors"
        patched, lora, text, _ = host.run("LCMLoRA_Loader", model=model, lora_name=name)
        report[kind] = {"error": error(patched, expected), "report": text}
        try:
            host.run("LCMLoRA_Arithmetic", a=lora, lambda_1=0.5, b=lora, lambda_2=0.5)
        except ValueError as reason:
            report[kind]["sum"] = str(reason)
        if kind == "dora":
            save_file(dict(lora), folder / "models" / "loras" / "core dora.safetensors")
            inputs = {"model": model, "lora_name": "core dora.safetensors", "strength_model": 1.0}
            report[kind]["core"] = error(host.run("LoraLoaderModelOnly", **inputs)[0], expected)
            half, *_ = host.run("LCMLoRA_Loader", model=model, lora_name=name, strength=0.5)
            between = {
                key: tensor.lerp(comfy.utils.get_attr(model.model, key), 0.5) for key, tensor in expected.items()
            }
            report[kind]["half"] = error(half, between)
    return report


def lycoris_files(host: Host, folder: Path) -> dict[str, Any]:
    """LyCORIS's own files on its own weights, against what it merges, by our node at two strengths and by core's."""
    import comfy.utils

    model = make_model("SD15")
    ldm = comfy.utils.unet_to_diffusers(model.model.model_config.unet_config)
    keys = {name: f"diffusion_model.{key}" for name, key in ldm.items()}
    base = {keys[name]: tensor for name, tensor in load_file(folder / "lycoris base.safetensors").items()}
    for key, tensor in base.items():
        comfy.utils.copy_to_param(model.model, key, tensor)
    report: dict[str, Any] = {}
    for merged in sorted(folder.glob("lycoris merged *.safetensors")):
        kind = merged.stem.removeprefix("lycoris merged ")
        expected = {keys[name]: tensor for name, tensor in load_file(merged).items()}
        name = f"lycoris {kind}.safetensors"
        patched, _, text, _ = host.run("LCMLoRA_Loader", model=model, lora_name=name)
        half, *_ = host.run("LCMLoRA_Loader", model=model, lora_name=name, strength=-0.5)
        between = {key: base[key] - 0.5 * (tensor - base[key]) for key, tensor in expected.items()}
        (core,) = host.run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0)
        report[kind] = {
            "errors": [error(patched, expected), error(half, between)], "core": error(core, expected), "report": text,
        }  # fmt: skip
    return report


def not_taken(host: Host, loras: Path) -> str:
    """What the report says where the host has no patch for one of the modules."""
    import comfy.lora

    names = [f"lora_unet_down_blocks_{level}_resnets_0_time_emb_proj" for level in (0, 1)]
    save_file(
        {f"{name}.{role}": torch.ones(shape) for name, width in zip(names, (32, 64), strict=True)
         for role, shape in (("lora_down.weight", (1, 128)), ("lora_up.weight", (width, 1)))},
        loras / "not taken.safetensors",
    )  # fmt: skip
    load = comfy.lora.load_lora
    comfy.lora.load_lora = lambda lora, targets, log_missing=True: {
        key: patch for key, patch in load(lora, targets, log_missing).items() if "input_blocks.1." not in key
    }
    try:
        return host.run("LCMLoRA_Loader", model=make_model("SD15"), lora_name="not taken.safetensors")[2]
    finally:
        comfy.lora.load_lora = load


def bias_of_a_part(host: Host, loras: Path) -> dict[str, Any]:
    """A bias of q alone, where the host's q, k and v are one: its place in the fused bias, and what the report says."""
    import comfy.utils

    model = make_model("SD3")
    table = comfy.utils.mmdit_to_diffusers(model.model.model_config.unet_config, output_prefix="diffusion_model.")
    key, (axis, start, length) = table["transformer_blocks.0.attn.to_q.weight"][:2]
    save_file({"transformer.transformer_blocks.0.attn.to_q.diff_b": torch.ones(length)}, loras / "bias.safetensors")
    patched, _, text, _ = host.run("LCMLoRA_Loader", model=model, lora_name="bias.safetensors")
    bias = f"{key.removesuffix('.weight')}.bias"
    expected = comfy.utils.get_attr(model.model, bias).clone()
    expected.narrow(axis, start, length).add_(1.0)
    return {"error": error(patched, {bias: expected}), "report": text}


def transformer_names(host: Host, loras: Path) -> dict[str, Any]:
    """Diffusers' names of SD3, whose q, k and v are one weight in the host, in four dialects; core reads the first."""
    import comfy.utils

    model = make_model("SD3")
    generator = torch.Generator().manual_seed(4)
    files: dict[str, dict[str, Tensor]] = {"peft": {}, "base_model": {}, "kohya": {}, "lycoris": {}}
    table = comfy.utils.mmdit_to_diffusers(model.model.model_config.unet_config, output_prefix="diffusion_model.")
    names = {
        "peft": "transformer.{}", "base_model": "base_model.model.{}", "kohya": "lora_transformer_{}",
        "lycoris": "lycoris_{}",
    }  # fmt: skip
    here = model.model.state_dict().keys()
    count = 0
    for path, target in table.items():
        module = path.removesuffix(".weight")
        key, offset = (target, None) if isinstance(target, str) else target[:2]
        if module == path or key not in here or not path.startswith("transformer_blocks.") or ".norm" in path:
            continue
        weight = comfy.utils.get_attr(model.model, key)
        down = torch.randn(1, weight.shape[1], generator=generator)
        up = torch.randn(offset[2] if offset else len(weight), 1, generator=generator)
        count += 1
        for dialect, pattern in names.items():
            flat = dialect in ("kohya", "lycoris")
            spelling = pattern.format(module.replace(".", "_") if flat else module)
            suffixes = ("lora_down", "lora_up") if flat else ("lora_A", "lora_B")
            files[dialect] |= {f"{spelling}.{suffixes[0]}.weight": down, f"{spelling}.{suffixes[1]}.weight": up}
    report = {"count": count}
    expected = {}
    for dialect, tensors in files.items():
        name = f"SD3 {dialect}.safetensors"
        save_file(tensors, loras / name)
        if not expected:
            expected = changed(host.run("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=1.0)[0])
        patched, _, text, _ = host.run("LCMLoRA_Loader", model=model, lora_name=name)
        report[dialect] = {"report": text, "error": error(patched, expected)}
    return report


def refusals(host: Host, loras: Path) -> dict[str, str]:
    """What the nodes say of files that do not fit, and whether the MODEL was left alone."""
    model = make_model("SD15")
    conv = "lora_unet_down_blocks_0_resnets_0_conv1"
    files = {
        "other family": load_file(loras / "SDXL.safetensors"),
        "bias": {f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.{r}": torch.ones(128, 128)[i]
                 for i, r in enumerate(("diff_b",))},
        "dora": {f"{conv}.lora_down.weight": torch.ones(1, 32, 3, 3), f"{conv}.lora_up.weight": torch.ones(32, 1, 1, 1),
                 f"{conv}.dora_scale": torch.ones(7, 1, 1, 1)},
        "oft": {f"{conv}.oft_blocks": torch.ones(3, 16, 16)},
        "nothing": {"unet.nowhere.lora_A.weight": torch.ones(1, 2), "unet.nowhere.lora_B.weight": torch.ones(2, 1)},
        "text alone": {k: v for k, v in load_file(loras / "SD15.safetensors").items() if k.startswith("text_encoder")},
        "boft of peft": {"base_model.model.conv_in.boft_R": torch.ones(1, 2, 2, 2),
                         "base_model.model.conv_in.boft_s": torch.ones(1, 32)},
    }  # fmt: skip
    said = {}
    for kind, tensors in files.items():
        save_file(tensors, loras / f"bad {kind}.safetensors")
        try:
            host.run("LCMLoRA_Loader", model=model, lora_name=f"bad {kind}.safetensors")
        except ValueError as error:
            said[kind] = str(error)
    patched, _, said["left out"], _ = host.run(
        "LCMLoRA_Loader", model=model, lora_name="bad other family.safetensors", leave_out_misfits=True
    )
    said["left out count"] = str(len(patched.patches))
    said["left alone"] = str(not model.patches and not model.object_patches)
    return said


def main() -> None:
    comfyui, folder = map(Path, sys.argv[1:])
    host = load_host(comfyui, folder)
    loras = folder / "models" / "loras"
    report = {
        **{family: every_dialect(host, loras, family) for family in ("SD15", "SDXL", "SSD1B")},
        "kinds": every_kind(host, loras),
        "peft": peft_files(host, folder),
        "lycoris": lycoris_files(host, folder),
        "not taken": not_taken(host, loras),
        "bias": bias_of_a_part(host, loras),
        "transformer": transformer_names(host, loras),
        "refusals": refusals(host, loras),
        "control": whole_weights.control(host, loras),
        "wan": whole_weights.wan(host, loras),
        "apart": whole_weights.layers_apart(host, loras),
        "packed": whole_weights.packed(sys.modules["lcm_lora_pack.nodes.host.targets"]),
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main()
