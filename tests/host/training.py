"""What the training nodes do inside the host's process, in its inference mode: prints facts as JSON, a key a function.

python tests/host/training.py COMFYUI BASE
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from lcm_core.accelerators import read_sampling  # noqa: E402
from lcm_core.lora import LoRAVector  # noqa: E402
from tools.inprocess import PACK, Host, load_host  # noqa: E402

Facts = dict[str, object]
SMALL = {"steps": 4, "rank": 4, "batch_size": 2, "preview_every": 0, "learning_rate": 1e-3}


class Bench:
    def __init__(self, host: Host, output: Path) -> None:
        self.host, self.output = host, output
        importlib.import_module("folder_paths").set_output_directory(str(output))
        self.management = importlib.import_module("comfy.model_management")
        self.utils = importlib.import_module("comfy.utils")
        self.training = importlib.import_module(f"{PACK}.nodes.host.training")
        self.model, clip, _ = host.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
        self.positive = [host.run("CLIPTextEncode", clip=clip, text=text)[0] for text in ("cat", "dog")]
        self.negative = host.run("CLIPTextEncode", clip=clip, text="")[0]
        g = torch.Generator().manual_seed(1)
        with torch.inference_mode():
            self.latents = [{"samples": torch.randn(1, 4, 8, width, generator=g)} for width in (8, 16)]

    def train(self, node: str = "LCMLoRA_Distill", **inputs) -> tuple:
        """The outputs of a training node, which takes lists; the two latents have different sizes."""
        declared = self.host.classes[node].INPUT_TYPES()
        specs = {**declared["required"], **declared.get("optional", {})}
        lists = {"model": [self.model], "positive": self.positive, "latents": self.latents}
        if "negative" in specs:
            lists["negative"] = [self.negative]
        given = {name: inputs.pop(name) for name in list(inputs) if name in lists}
        scalars = {name: spec[1]["default"] for name, spec in specs.items() if "default" in dict(*spec[1:])}
        single = {name: [value] for name, value in (scalars | SMALL | {"state_prefix": ""} | inputs).items()}
        return self.host.run(node, **single | lists | given)

    def states(self) -> list[str]:
        return sorted(path.name for path in self.output.rglob("*.safetensors"))


def message(act: Callable[[], object]) -> str:
    try:
        act()
    except (ValueError, OSError, FloatingPointError) as error:
        return str(error)
    return "no error"


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def network(bench: Bench) -> Facts:
    """The largest difference between the network as training calls it and as the host does, and a tensor's scale."""
    model, sampling = bench.model, bench.model.get_model_object("model_sampling")
    schedule, prediction = bench.training.noise_process(model)
    z, t = bench.latents[0]["samples"], torch.tensor([500])
    with bench.training.trainable(model) as unet:
        given = bench.training.conditions(model, bench.positive[0], bench.negative, z[0])
        call = bench.training.as_model(model, unet, given)
        cond = tuple(tensor[None] for tensor in given.rows[0])
        output = call(z, t, cond, None)
        sigma = sampling.sigma(t)
        x = z * (1 + sigma**2).sqrt()
        expected = (x - model.model.apply_model(x, sigma, c_crossattn=cond[0])) / sigma
    return {
        "names": given.names,
        "prediction": prediction,
        "alpha": abs(float(schedule.alpha(500)) - float(1 / (1 + sigma**2).sqrt())),
        "apart": float((output - expected).abs().max()),
    }


def distillation(bench: Bench) -> Facts:
    """One training: the MODEL afterwards, the vector in core's loader, the plot and the previews."""
    before = {key: value.clone() for key, value in bench.model.model.state_dict().items()}
    previews = []
    bench.utils.set_progress_bar_global_hook(lambda done, total, preview, **_: previews.append((done, preview)))
    with torch.inference_mode():
        lora, plot, report = bench.train(preview_every=2, links=25)
    bench.utils.set_progress_bar_global_hook(None)
    after = bench.model.model.state_dict()
    vector = LoRAVector.from_state_dict(lora)
    loader = importlib.import_module("comfy_extras.nodes_train").LoraModelLoader
    core = bench.host.run(loader, model=bench.model, lora=lora, strength_model=1.0)[0]
    ours = bench.host.run("LCMLoRA_ApplyVector", model=bench.model, lora=lora)[0]
    return {
        "unchanged": same(before, after),
        "left": sum(p.requires_grad for p in bench.model.model.parameters())
        + sum(len(module._forward_hooks) for module in bench.model.model.modules()),
        "modules": len(vector),
        "norm": vector.norm(),
        "patched": [len(ours.patches), len(core.patches)],
        "plot": [list(plot.shape), float(plot.min()) >= 0, float(plot.max()) <= 1],
        "report": report,
        "recorded": [read_sampling(lora.metadata).name, read_sampling(lora.metadata).original_steps],
        "previews": [(done, preview and preview[1].size) for done, preview in previews],
    }


def resumed(bench: Bench) -> Facts:
    """An interrupted training that goes on, against one in a single run."""
    whole = bench.train()[0]
    reports = 0

    def hook(done: int, total: int, preview, **_) -> None:
        nonlocal reports
        reports += 1
        if done == 2:
            bench.management.interrupt_current_processing(True)

    bench.utils.set_progress_bar_global_hook(hook)
    try:
        bench.train(state_prefix="training/state")
        stopped = False
    except bench.management.InterruptProcessingException:
        stopped = True
    finally:
        bench.utils.set_progress_bar_global_hook(None)
        bench.management.interrupt_current_processing(False)
    states = bench.states()
    lora, _, report = bench.train(state_prefix="training/state")
    return {
        "stopped": stopped,
        "steps": reports,
        "states": [len(states), bench.states() == states],
        "report": report,
        "equal": same(whole, lora),
        "again": same(lora, bench.train(state_prefix="training/state")[0]),
    }


def another(bench: Bench) -> Facts:
    """The same graph on another network or batch: the vector of a training of its own, beside the first one's state."""
    style = bench.host.run("LCMLoRA_LoadVector", lora_name="pocket_style.safetensors")[0]
    styled = bench.host.run("LCMLoRA_ApplyVector", model=bench.model, lora=style)[0]
    prefix = {"state_prefix": "another/state", "steps": 1}
    plain = bench.train(**prefix)[0]
    found = {}
    for name, changed in {"style": {"model": [styled]}, "batch": {"batch_size": 1}}.items():
        lora, _, report = bench.train(**prefix, **changed)
        fresh = bench.train(steps=1, **changed)[0]
        found[name] = [same(lora, fresh), same(lora, plain), "resumed" in report]
    lora, _, report = bench.train(**prefix, save_every=1, gradient_checkpointing=True)
    return {
        "found": found,
        "again": [same(lora, plain), "resumed after step 1" in report],
        "report": report,
        "sizes": sorted(path.stat().st_size for path in (bench.output / "another").iterdir()),
    }


def full_disk(bench: Bench) -> Facts:
    """No file of this process may grow to a state's size: the vector comes, and the report says what went wrong."""
    whole = bench.train(steps=1)[0]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        lora, plot, report = bench.train(steps=1, state_prefix="full/state")
        bench.utils.set_progress_bar_global_hook(
            lambda done, *_, **__: bench.management.interrupt_current_processing(True)
        )
        try:
            bench.train(steps=2, state_prefix="full/state")
            stopped = "no error"
        except BaseException as error:
            stopped = type(error).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        bench.utils.set_progress_bar_global_hook(None)
        bench.management.interrupt_current_processing(False)
    return {
        "equal": same(whole, lora),
        "plot": list(plot.shape),
        "report": report,
        "stopped": stopped,
        "left": [path.name for path in (bench.output / "full").iterdir()],
    }


def options(bench: Bench) -> Facts:
    """Checkpointing leaves the result; LCF trains from an LCM without a teacher."""
    plain = LoRAVector.from_state_dict(bench.train(steps=2)[0])
    saving = LoRAVector.from_state_dict(bench.train(steps=2, gradient_checkpointing=True)[0])
    lcm = bench.host.run("LCMLoRA_LoadVector", lora_name="pocket_lcm.safetensors")[0]
    model = bench.host.run("LCMLoRA_ApplyVector", model=bench.model, lora=lcm)[0]
    tuned = LoRAVector.from_state_dict(bench.train("LCMLoRA_Finetune", model=[model], steps=2)[0])
    return {"checkpointing": (plain - saving).norm() / plain.norm(), "finetuned": tuned.norm()}


def errors(bench: Bench) -> Facts:
    lcm = bench.host.run("LCMLoRA_Loader", model=bench.model, lora_name="pocket_lcm.safetensors")[0]
    wrapped = bench.model.clone()
    wrapped.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    small = {"samples": torch.zeros(1, 3, 8, 8)}
    damaged = {"state_prefix": "damaged/state", "steps": 1}
    bench.train(**damaged)
    (state,) = (bench.output / "damaged").iterdir()
    rate = message(lambda: bench.train(**damaged, learning_rate=1e-4))
    state.write_bytes(state.read_bytes()[:-1])
    cut = message(lambda: bench.train(**damaged))
    state.unlink()
    return {
        "rate": rate,
        "cut": cut,
        "no latents": message(lambda: bench.train(latents=[{"samples": torch.zeros(0, 4, 8, 8)}])),
        "counts": message(lambda: bench.train(latents=[*bench.latents, bench.latents[0]])),
        "channels": message(lambda: bench.train(latents=[small, small])),
        "already": message(lambda: bench.train(model=[lcm])),
        "wrapped": message(lambda: bench.train(model=[wrapped])),
        "omega": message(lambda: bench.train(omega_min=8.0, omega_max=2.0)),
        "outside": message(lambda: bench.train(state_prefix="../state")),
        "nan": message(lambda: bench.train(latents=[{"samples": torch.full((2, 4, 8, 8), float("nan"))}])),
        "states": bench.states(),
    }


def main() -> None:
    comfyui, base = map(Path, sys.argv[1:])
    host = load_host(comfyui, base)
    sys.modules["comfy.utils"].set_progress_bar_enabled(True)
    settings = sys.modules["comfy.cli_args"]
    settings.args.preview_method = settings.LatentPreviewMethod.Latent2RGB
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(host, Path(folder))
        facts = {
            act.__name__: act(bench) for act in (network, distillation, errors, resumed, another, full_disk, options)
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
