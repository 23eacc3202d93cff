"""Acceleration LoRAs from the file to the picture, inside the host's process: prints facts as JSON, a key a function.

python -m tests.host.accelerators COMFYUI BASE
"""

from __future__ import annotations

import importlib
import json
import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lcm_core.accelerators import contradictions, levels, load_recipes, recognize
from lcm_core.lora import LoRAVector
from lcm_core.schedule import Flow, NoiseSchedule
from tests.host.features import Bench, Facts, Watched, empty, extra, frames, largest, message
from tests.host.shrunken import ARCHITECTURES, build
from tools.inprocess import PACK, load_host

FILES = ("lcm-lora-sdv1-5", "Hyper-SD15-4steps-lora", "Hyper-SD15-8steps-CFG-lora", "Hyper-SD15-1step-lora",
         "TCD-SD15-LoRA", "pcm_sd15_smallcfg_2step_converted")  # fmt: skip
OLD = {"steps": 4, "cfg": 1.0, "denoise": 1.0, "original_steps": 50, "gamma": 1.0}
FLOWS = {
    "Wan2.1-T2V-14B-lightx2v-cfg-step-distill-lora": ("Wan 2.1 T2V", "WAN21_T2V", "blocks.0.self_attn.q"),
    "Qwen-Image-Lightning-8steps-V1.1": ("Qwen-Image", "QwenImage", "transformer_blocks.0.attn.to_q"),
}
WIDGETS = ("Loader", "Sampler", "StreamBatch", "Schedule", "SamplerSelect")
SD = NoiseSchedule.scaled_linear()


class Log(list):
    """The warnings of the nodes since the last look."""

    def __init__(self) -> None:
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.append(record.getMessage().removeprefix("LCM-LoRA: "))
        logging.getLogger().addHandler(handler)

    def taken(self) -> list[str]:
        found = list(self)
        self.clear()
        return found


class Loras:
    """A folder of LoRA files of these names, each the pocket model's LCM-LoRA unless another is written."""

    def __init__(self, folder: Path) -> None:
        self.folder, paths = folder, importlib.import_module("folder_paths")
        self.lcm = paths.get_full_path("loras", "pocket_lcm.safetensors")
        for name in (*FILES, "someones"):
            shutil.copyfile(self.lcm, folder / f"{name}.safetensors")
        paths.add_model_folder_path("loras", str(folder))

    def write(self, name: str, tensors: dict[str, torch.Tensor], **metadata: str) -> str:
        save_file(tensors, self.folder / f"{name}.safetensors", metadata or None)
        importlib.import_module("folder_paths").filename_list_cache.clear()
        return f"{name}.safetensors"


def load(bench: Bench, name: str, model=None, **inputs) -> tuple:
    """(model, lora, report) of Load Acceleration LoRA."""
    given = {"model": model or bench.plain, "lora_name": f"{name}.safetensors"}
    return bench.host.run("LCMLoRA_Loader", **given | inputs)[:3]


def load_on(bench: Bench, name: str, model, made_from: tuple) -> tuple:
    """`load` on a host whose MODELs know what they were made from, as newer ones do."""
    patcher = importlib.import_module("comfy.model_patcher").ModelPatcher
    before = vars(patcher).get("cached_patcher_init")
    patcher.cached_patcher_init = made_from
    try:
        return load(bench, name, model)
    finally:
        patcher.cached_patcher_init = before


def known_files(bench: Bench, loras: Loras, log: Log) -> Facts:
    """Three inputs on files known by their names: timesteps against the recipe's, and the same run set by hand."""
    facts: Facts = {}
    for name in FILES:
        recipe = recognize(name, base="SD1.5").recipe
        log.clear()
        model, lora, report = load(bench, name)
        watched = Watched(model)
        made = bench.sample(watched.model)
        by_hand = bench.sample(
            load(bench, name, recipe="none")[0], steps=recipe.default_steps, grid=recipe.grid,
            gamma=recipe.gamma.default, cfg=recipe.cfg.default,
        )  # fmt: skip
        facts[name] = {
            "recipe": recipe.name,
            "timesteps": watched.timesteps(),
            "levels": levels(recipe, None, SD),
            "guided": len(watched.calls[0][2]) > 1,
            "by hand": largest(made, by_hand),
            "from an LCM's": largest(made, bench.sample(**OLD)),
            "report": report,
            "recorded": "lcm_lora.sampling" in lora.metadata,
        }
    return facts | {"warnings": log.taken()}


def old_graphs(bench: Bench, loras: Loras, log: Log) -> Facts:
    """A graph that has the former inputs alone, on models with a recipe and without: the largest difference."""
    sampler = bench.host.classes["LCMLoRA_Sampler"]

    def sample(model) -> torch.Tensor:
        given = {"positive": bench.positive, "negative": bench.negative, "latent": empty(1), "seed": 5}
        with torch.inference_mode():
            return sampler.EXECUTE_NORMALIZED(model=model, **given | OLD).args[0]["samples"]

    plain = sample(load(bench, "someones", recipe="none")[0])
    declared = {name: bench.host.classes[f"LCMLoRA_{name}"].INPUT_TYPES() for name in WIDGETS}
    return {
        "widgets": {name: [*kinds["required"], *kinds["optional"]] for name, kinds in declared.items()},
        "apart": {name: largest(sample(load(bench, name)[0]), plain) for name in (*FILES, "someones")},
        "three inputs": largest(bench.sample(load(bench, "someones")[0]), plain),
    }


def overrides(bench: Bench, loras: Loras, log: Log) -> Facts:
    """Timesteps and warnings of runs in which one setting is the user's."""
    model = load(bench, "Hyper-SD15-4steps-lora")[0]
    latent = {"samples": frames(1)}
    facts: Facts = {}
    for name, inputs in {
        "steps": {"steps": 8},
        "cfg": {"cfg": 7.0},
        "gamma": {"gamma": 1.0},
        "grid": {"grid": "lcm"},
        "old": OLD,
        "two steps on either grid": {"steps": 2, "grid": "lcm"},
        "half": {"denoise": 0.5, "latent": latent},
        "own": {"timesteps": "999, 499"},
        "nothing": {},
    }.items():
        watched = Watched(model)
        log.clear()
        bench.sample(watched.model, **inputs)
        facts[name] = {"timesteps": watched.timesteps(), "warnings": log.taken()}
    return facts | {
        "too little": message(lambda: bench.sample(model, denoise=0.2, latent=latent)),
        "too many": message(lambda: bench.sample(model, steps=10**9)),
    }


def custom_sampling(bench: Bench, loras: Loras, log: Log) -> Facts:
    """LCM Schedule and LCM Sampler Select left on auto, against LCM Sampler; also after core's own LoRA loader."""
    model = load(bench, "TCD-SD15-LoRA")[0]
    run, node = bench.host.run, extra("nodes_custom_sampler", "SamplerCustom")
    facts: Facts = {}
    lora = {"model": model, "lora_name": "pocket_style.safetensors", "strength_model": 0.5}
    for name, each in {"alone": model, "styled": run("LoraLoaderModelOnly", **lora)[0]}.items():
        made = run(
            node, model=each, add_noise=True, noise_seed=5, cfg=1.0, positive=bench.positive, negative=bench.negative,
            sampler=run("LCMLoRA_SamplerSelect")[0], sigmas=run("LCMLoRA_Schedule", model=each)[0],
            latent_image=empty(1),
        )[0]["samples"]  # fmt: skip
        facts[name] = [largest(made, bench.sample(each)), largest(made, bench.sample(each, gamma=1.0))]
    stream = bench.sample(model, "LCMLoRA_StreamBatch", latent=empty(2))
    facts["stream"] = largest(stream, bench.sample(model, latent=empty(2)))
    return facts


def flow_model(kind: str, config: str) -> Any:
    """A shrunken flow model under the configuration that the stock loader gives it."""
    base, known = importlib.import_module("comfy.model_base"), importlib.import_module("comfy.supported_models")
    model = build(kind)
    own = getattr(known, config)(dict(ARCHITECTURES[kind][1]))
    model.model.model_config = own
    model.model.latent_format = own.latent_format
    model.model.model_sampling = base.model_sampling(own, model.model.model_type)
    return model


def flows(bench: Bench, loras: Loras, log: Log) -> Facts:
    """The shift that a recipe sets on a flow, and its sigmas; and one that another node had set."""
    facts: Facts = {}
    factors = {"lora_down.weight": torch.ones(2, 128), "lora_up.weight": torch.ones(128, 2)}
    for name, (kind, config, module) in FLOWS.items():
        loras.write(name, {f"diffusion_model.{module}.{role}": tensor for role, tensor in factors.items()})
        bare = flow_model(kind, config)
        log.clear()
        model, _, report = load(bench, name, bare)
        recipe = recognize(name, base=kind).recipe
        (shifted,) = bench.host.run(extra("nodes_model_advanced", "ModelSamplingSD3"), model=bare, shift=9.0)
        quiet = log.taken()
        kept, _, kept_report = load(bench, name, shifted)
        unset = load(bench, name, bare, recipe="none")[0]
        log.clear()
        (sigmas,) = bench.host.run("LCMLoRA_Schedule", model=model)
        facts[name] = {
            "sigmas": sigmas.tolist(),
            "levels": levels(recipe, None, Flow(recipe.shift.default)),
            "evenly": bench.host.run("LCMLoRA_Schedule", model=kept)[0].tolist(),
            "shifted": levels(recipe, None, Flow(9)),
            "report": report,
            "warnings": quiet,
            "kept": kept_report,
            "bare": largest(
                unset.get_model_object("model_sampling").sigmas, bare.get_model_object("model_sampling").sigmas
            ),
            "contradicted": log.taken() == contradictions(recipe, shift=9.0),
            "left alone": not bare.object_patches and not bare.attachments,
        }
    return facts


def warnings(bench: Bench, loras: Loras, log: Log) -> Facts:
    """What is said of LoRAs in the wrong place."""
    factors = LoRAVector.load(loras.lcm).state_dict("kohya")
    loras.write("sparkle", factors, ss_network_module="networks.lora")
    loras.write("sdxl_lightning_4step_lora", factors)
    loras.write("lcm-lora-and-hyper-sd15-4steps", factors)
    wan = {
        f"diffusion_model.blocks.0.self_attn.q.lora_{end}.weight": torch.ones(*shape)
        for end, shape in (("down", (2, 128)), ("up", (128, 2)))
    }
    low = loras.write("Wan2.2-Lightning_T2V-A14B-4steps-lora_LOW_fp16", wan).removesuffix(".safetensors")
    expert = flow_model("Wan 2.1 T2V", "WAN21_T2V")
    made_from = (None, ("/low noise/wan2.2_t2v_high_noise_14B_fp8.safetensors", {}))
    hyper = load(bench, "Hyper-SD15-4steps-lora")[0]
    facts: Facts = {}
    for name, act in {
        "fits": lambda: load(bench, "Hyper-SD15-4steps-lora"),
        "style": lambda: load(bench, "sparkle"),
        "chosen": lambda: load(bench, "sparkle", recipe="TCD"),
        "base": lambda: load(bench, "sdxl_lightning_4step_lora"),
        "two names": lambda: load(bench, "lcm-lora-and-hyper-sd15-4steps"),
        "two": lambda: load(bench, "lcm-lora-sdv1-5", hyper),
        "strength": lambda: load(bench, "Hyper-SD15-4steps-lora", strength=0.2),
        "either expert": lambda: load(bench, low, expert),
        "expert": lambda: load_on(bench, low, expert, made_from),
        "chosen for another": lambda: load(bench, "someones", recipe="SDXL-Lightning"),
    }.items():
        log.clear()
        report = act()[2]
        facts[name] = log.taken()
        assert all(f"⚠ {text}" in report for text in facts[name])
    sampling = importlib.import_module(f"{PACK}.nodes.acceleration")
    model = load(bench, low, expert)[0]
    run = sampling.run_of(model)
    for start, end in ((0, 10000), (0, 2), (2, 10000)):
        part = sampling.expert_of_part(4, start, end)
        said = sampling.said_of(model, run, sampling.run_sigmas(model, run), 1.0, expert=part)
        facts[f"steps {start} to {end}"] = list(said.warnings)
    removed = load(bench, "Hyper-SD15-4steps-lora", strength=-1.0)[0]
    facts["removed"] = bool(removed.attachments)
    return facts


def user_recipes(bench: Bench, loras: Loras, log: Log) -> Facts:
    """A user's file with one good entry and one bad, and a run by the good one."""
    host = importlib.import_module(f"{PACK}.nodes.host.recipes")
    paths = importlib.import_module("folder_paths")
    before, paths.user_directory = paths.get_user_directory(), str(loras.folder)
    entry = {
        "family": "Speedy", "bases": ["SD1.5"], "files": ["speedy"], "grid": "trailing", "steps": 3, "gamma": 0.5,
        "sources": ["https://example.org"],
    }  # fmt: skip
    table = {"speedy": entry, "broken": {**entry, "gamma": 7}}
    (loras.folder / "lcm_lora_recipes.json").write_text(json.dumps(table), encoding="utf-8")
    shutil.copyfile(loras.lcm, loras.folder / "speedy.safetensors")
    paths.filename_list_cache.clear()
    host.recipes.cache_clear()
    log.clear()
    try:
        declared = bench.host.classes["LCMLoRA_Loader"].INPUT_TYPES()["optional"]["recipe"]
        model, _, report = load(bench, "speedy")
        watched = Watched(model)
        bench.sample(watched.model)
        return {
            "choices": declared[1]["options"] if len(declared) > 1 and "options" in declared[1] else declared[0],
            "log": log.taken(),
            "report": report,
            "timesteps": watched.timesteps(),
        }
    finally:
        paths.user_directory = before
        host.recipes.cache_clear()


def vectors(bench: Bench, loras: Loras, log: Log) -> Facts:
    """What sums record of an accelerator, and what LCM Sampler makes of one that Apply LoRA Vector put on."""
    run = bench.host.run
    hyper, lcm, style = (
        run("LCMLoRA_LoadVector", lora_name=f"{name}.safetensors")[0]
        for name in ("Hyper-SD15-4steps-lora", "lcm-lora-sdv1-5", "pocket_style")
    )
    (mixed,) = run("LCMLoRA_Arithmetic", a=style, b=hyper)
    model, report, _ = run("LCMLoRA_ApplyVector", model=bench.plain, lora=mixed)
    watched = Watched(model)
    bench.sample(watched.model)
    log.clear()
    (several,) = run("LCMLoRA_Arithmetic", a=lcm, b=hyper, lambda_1=1.0)
    said = log.taken()
    applied = run("LCMLoRA_ApplyVector", model=bench.plain, lora=several)[0]
    (removed,) = run("LCMLoRA_Arithmetic", a=style, b=hyper, lambda_2=0.0)
    importlib.import_module("folder_paths").set_output_directory(str(loras.folder))
    run("LCMLoRA_SaveVector", lora=mixed, filename_prefix="saved/mix")
    (saved,) = (loras.folder / "saved").glob("mix*")
    chosen = load(bench, "Hyper-SD15-4steps-lora", recipe="TCD")[1]
    looked_into = {
        "file": hyper, "sum": mixed, "several": several, "style": style, "chosen": chosen, "core's": dict(lcm),
    }  # fmt: skip
    return {
        "inspected": {name: run("LCMLoRA_Inspect", lora=lora)[0].splitlines() for name, lora in looked_into.items()},
        "timesteps": watched.timesteps(),
        "report": report,
        "saved": recognize(saved.name, LoRAVector.load(saved).metadata).recipe.name,
        "several": said,
        "none of several": not applied.attachments,
        "removed": "lcm_lora.sampling" in removed.metadata,
    }


CHECKS = (known_files, old_graphs, overrides, custom_sampling, flows, warnings, user_recipes, vectors)

if __name__ == "__main__":
    bench = Bench(load_host(Path(sys.argv[1]), Path(sys.argv[2])))
    with tempfile.TemporaryDirectory() as folder:
        loras, log = Loras(Path(folder)), Log()
        facts = {check.__name__: check(bench, loras, log) for check in CHECKS}
    print(json.dumps(facts | {"recipes": list(load_recipes()[0])}))
