"""What the nodes for LoRA vectors do, in the host's process: prints facts as JSON, a key a function.

python tests/host/vectors.py COMFYUI BASE
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).resolve().parents[2]))

from lcm_core import cli  # noqa: E402
from lcm_core.lora import (  # noqa: E402
    METHODS,
    LoRAVector,
    block_cosines,
    combine,
    extract,
    preset_weights,
    scale_blocks,
)
from lcm_core.lora.record import EXPRESSION, PARENTS  # noqa: E402
from tools.inprocess import Host, load_host  # noqa: E402

Facts = dict[str, object]
NAN = float("nan")
OPTIONS = {
    "density": 0.3, "t": 0.25, "seed": 5, "majority_sign_method": "frequency", "per_module": True, "epsilon": 0.1,
    "gamma": 0.02, "mu": 2.5, "directions": 3, "decay": 0.5,
}  # fmt: skip
METADATA = {"ss_output_name": "papercut", "modelspec.author": "someone", "ss_network_dim": "32"}


class Bench:
    """Some small modules of the pocket model's LoRAs, as the files style and lcm of a folder of models of its own."""

    def __init__(self, host: Host, base: Path, folder: Path) -> None:
        self.run, self.host, self.folder, self.output = host.run, host, folder, folder / "output"
        self.paths = importlib.import_module("folder_paths")
        self.classes, self.loaded = host.classes, sorted(sys.modules)
        for kind in ("loras", "checkpoints"):
            (folder / kind).mkdir()
            self.paths.add_model_folder_path(kind, str(folder / kind))
        self.output.mkdir()
        self.paths.set_output_directory(str(self.output))
        for name in ("style", "lcm"):
            whole = LoRAVector.load(base / "models" / "loras" / f"pocket_{name}.safetensors")
            small = {key: factors for key, factors in whole.modules.items() if math.prod(factors.shape) <= 320 * 768}
            part = dict(list(small.items())[::6])
            LoRAVector(part, metadata=METADATA if name == "style" else {}).save(self.lora(name))
        self.style, self.lcm = LoRAVector.load(self.lora("style")), LoRAVector.load(self.lora("lcm"))
        self.a, self.b = self.load("style"), self.load("lcm")

    def lora(self, name: str) -> Path:
        return self.folder / "loras" / f"{name}.safetensors"

    def load(self, name: str) -> dict[str, torch.Tensor]:
        return self.run("LCMLoRA_LoadVector", lora_name=f"{name}.safetensors")[0]

    def save(self, lora: dict[str, torch.Tensor], **inputs) -> Path:
        before = set(self.output.rglob("*.safetensors"))
        self.run("LCMLoRA_SaveVector", lora=lora, **inputs)
        (path,) = set(self.output.rglob("*.safetensors")) - before
        return path


def apart(lora: dict[str, torch.Tensor], expected: LoRAVector) -> float:
    """The largest |difference| of two vectors' ΔW, over the largest |ΔW|; infinite if the modules differ."""
    vector = LoRAVector.from_state_dict(lora)
    if vector.modules.keys() != expected.modules.keys() or vector.diffs.keys() != expected.diffs.keys():
        return float("inf")
    pairs = [(vector.delta(name), expected.delta(name)) for name in vector.modules]
    pairs += [(vector.diffs[name], expected.diffs[name]) for name in vector.diffs]
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(b.abs().max()) for _, b in pairs)


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def message(act: Callable[[], object]) -> str:
    try:
        act()
    except (ValueError, LookupError, ImportError) as error:
        return str(error)
    return "no error"


def imports(bench: Bench) -> Facts:
    """What starting the host with the pack has imported of what is only imported when it is used."""
    slow = re.compile(r"^(matplotlib|accelerate|diffusers)$|lcm_core\.distill\.(adapters|data|identity|state|trainer)$")
    return {"slow": [name for name in bench.loaded if slow.search(name)]}


def equal(bench: Bench) -> Facts:
    """Distance of each node's vector from lcm_core's."""
    a, b, style, lcm = bench.a, bench.b, bench.style, bench.lcm
    mix = bench.run("LCMLoRA_Arithmetic", a=a, b=b)[0]
    text = "0.8*'style' + b - (0.1 + 0.2)*lcm.safetensors"
    facts: Facts = {
        "arithmetic": apart(mix, 0.8 * style + lcm),
        "three": apart(bench.run("LCMLoRA_Arithmetic", a=a, b=b, c=a, lambda_3=-0.8)[0], 1.0 * lcm + 0.0 * style),
        "plain dict": apart(bench.run("LCMLoRA_Arithmetic", a=dict(a), b=dict(b))[0], 0.8 * style + lcm),
        "expression": apart(bench.run("LCMLoRA_Expression", expression=text, b=b)[0], 0.8 * style + 0.7 * lcm),
        "compress": apart(bench.run("LCMLoRA_Compress", lora=mix, rank=5)[0], (0.8 * style + lcm).compress(5)),
        "lossless": apart(bench.run("LCMLoRA_Compress", lora=mix)[0], 0.8 * style + lcm),
    }
    for method in METHODS:
        inputs = OPTIONS | {"weight_a": 0.8, "weight_b": 0.5, "rank": 4, "method": method}
        given = {name: OPTIONS[name] for name in METHODS[method].options}
        expected = combine([style, lcm], [0.8, 0.5], method, rank=4, **given)
        facts[method] = apart(bench.run("LCMLoRA_Combine", a=a, b=b, **inputs)[0], expected)
    lists = ", ".join(["1", *["0.5"] * 16]), [1.0, *[0.5] * 16]
    weighted = bench.run("LCMLoRA_BlockWeights", lora=a, weights=lists[0], rest=0.0)[0]
    facts["preset"] = apart(weighted, scale_blocks(style, preset_weights(lists[1], rest=0.0)))
    weighted = bench.run("LCMLoRA_BlockWeights", lora=a, weights="M00: 0\n\nOUT*: -0.5", rest=2.0)[0]
    facts["patterns"] = apart(weighted, scale_blocks(style, {"M00": 0, "OUT*": -0.5, "*": 2.0}))
    return facts


def extraction(bench: Bench) -> Facts:
    """A vector from two checkpoints, and what is said of it."""
    generator = torch.Generator().manual_seed(1)
    names = {"input_blocks.1.1.proj_in": (16, 24), "middle_block.0.in_layers.2": (16, 8, 3, 3)}
    norm = "model.diffusion_model.input_blocks.1.1.norm"
    sources = []
    for name in ("tuned", "base"):
        state = {f"model.diffusion_model.{module}.weight": torch.randn(shape, generator=generator)
                 for module, shape in names.items()}  # fmt: skip
        sources.append(state | {f"{norm}.weight": torch.randn(16, generator=generator)})
        save_file(sources[-1], bench.folder / "checkpoints" / f"{name}.safetensors")
    files = {"tuned": "tuned.safetensors", "base": "base.safetensors"}
    lora, report = bench.run("LCMLoRA_Extract", **files, rank=3, norms_and_biases=True)
    vector, found = extract(*sources, rank=3, diffs=True)
    return {
        "apart": apart(lora, vector),
        "captured": f"{found.energy:.2%}" in report,
        "worst": [line.split(": ")[1] for line in report.splitlines()[-2:]],
        "unlimited": message(lambda: bench.run("LCMLoRA_Extract", **files, rank=0)),
        "expression": lora.record["lcm_lora.expression"],
    }


def records(bench: Bench) -> Facts:
    """Metadata of files after each way through the graph."""
    mix = bench.run("LCMLoRA_Arithmetic", a=bench.a, b=bench.b)[0]
    small = bench.run("LCMLoRA_Compress", lora=mix, rank=8)[0]
    path = bench.save(small, filename_prefix="loras/mix", dialect="kohya", dtype="float32")
    mixed = bench.folder / "loras" / "mixed.safetensors"
    mixed.write_bytes(path.read_bytes())
    digests = {name: hashlib.sha256(bench.lora(name).read_bytes()).hexdigest() for name in ("style", "lcm", "mixed")}
    again = bench.run("LCMLoRA_Arithmetic", a=bench.load("mixed"), b=dict(bench.b), lambda_1=2.0)[0]
    ties, conflict = bench.run("LCMLoRA_Combine", a=bench.a, b=bench.b, method="slerp", weight_b=0.5)
    other = bench.run("LCMLoRA_Combine", a=bench.a, b=bench.b, method="della", weight_a=0.8, rank=3, epsilon=0.1)[0]
    resized = bench.run("LCMLoRA_Compress", lora=bench.a, conv_rank=2, sv_ratio=20.0, sv_cumulative=0.5)[0]
    weighted = bench.run("LCMLoRA_BlockWeights", lora=bench.a, weights="M00: 0.5")[0]
    expressed = bench.run("LCMLoRA_Expression", expression="style - 0.5*(lcm + b)", b=mix)[0]
    return {
        "digests": digests,
        "saved": metadata(path),
        "copied": metadata(bench.save(bench.a, filename_prefix="copy", dialect="peft", dtype="float16")),
        "again": metadata(bench.save(again)),
        "plain": metadata(bench.save(dict(bench.b), dtype="bfloat16")),
        "read back": apart(bench.load("mixed"), (0.8 * bench.style + bench.lcm).compress(8)),
        "expressions": [lora.record["lcm_lora.expression"] for lora in (ties, weighted, expressed)],
        "node": other.record,
        "command": command_record(bench),
        "conflicts": conflict.splitlines()[1:],
        "cosine": bench.style.cosine(bench.lcm),
        "resized": [
            resized.record["lcm_lora.expression"],
            apart(resized, bench.style.compress(conv_rank=2, sv_ratio=20.0, sv_cumulative=0.5)),
        ],
        "inspected": bench.run("LCMLoRA_Inspect", lora=bench.load("mixed"))[0],
        "inspected plain": bench.run("LCMLoRA_Inspect", lora=dict(bench.b))[0],
        "kept by": {name: lora.metadata for name, lora in {"mix": mix, "small": small, "ties": ties}.items()},
    }


def command_record(bench: Bench) -> dict[str, str]:
    """What the command line writes for the same call as a node's."""
    output = bench.folder / "merged.safetensors"
    expression = f"0.8*'{bench.lora('style')}' + '{bench.lora('lcm')}'"
    arguments = ["--method", "della", "--epsilon", "0.1", "--rank", "3", "-o", str(output), "--quiet"]
    assert cli.main(["merge", expression, *arguments]) == 0
    return {key: text for key, text in metadata(output).items() if key in (EXPRESSION, PARENTS)}


def widgets(bench: Bench) -> Facts:
    """The inputs with a widget of the nodes that graphs keep values of by position, in the front end's order."""
    kinds = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    found: Facts = {}
    for name in ("Combine", "Compress", "Arithmetic"):
        declared = bench.host.classes[f"LCMLoRA_{name}"].INPUT_TYPES()
        both = {**declared["required"], **declared.get("optional", {})}
        found[name] = [key for key, spec in both.items() if isinstance(spec[0], list) or spec[0] in kinds]
    required = bench.host.classes["LCMLoRA_Combine"].INPUT_TYPES()["required"]
    found["required"] = list(required)
    return found


def growing(bench: Bench) -> Facts:
    """Sums of more vectors than there are sockets, where the host has inputs that grow; else what is said of them."""
    a, b, further = bench.a, bench.b, {"e": bench.b, "f": bench.a, "g": None}
    calls = {
        "arithmetic": ("LCMLoRA_Arithmetic", {"a": a, "b": b, "more_lambdas": "2, -1"}),
        "expression": ("LCMLoRA_Expression", {"expression": "0.8*a + b + 2*e - f", "a": a, "b": b}),
        "combine": ("LCMLoRA_Combine", {"a": a, "b": b, "method": "sum", "weight_a": 0.8, "more_weights": "2 -1"}),
    }  # fmt: skip
    expected = -0.2 * bench.style + 3.0 * bench.lcm
    found: Facts = {}
    for name, (node, inputs) in calls.items():
        if "more" in bench.host.classes[node].INPUT_TYPES().get("optional", {}):
            found[name] = apart(bench.run(node, **inputs, more=further)[0], expected)
            wrong = {**inputs, "more": {"e": 3}}
            assert message(lambda node=node, wrong=wrong: bench.run(node, **wrong)).startswith(
                "more.e is no LORA_MODEL"
            )
        else:
            found[name] = message(lambda node=node, inputs=inputs: bench.run(node, **inputs, more=further))
    return found


def saving(bench: Bench) -> Facts:
    """Names of saved files below output, and what the pack deletes when the host starts."""
    prefixes = ["numbered/mix", "numbered/mix", "v1.", "%year%/at", "%date:yyyy-MM%/on %date:d%", "%KSampler.seed%"]
    paths = [bench.save(bench.a, filename_prefix=prefix) for prefix in prefixes]
    left = [bench.output / folder / f".lcm-lora-{'0' * 16}.part" for folder in ("loras", "lcm_training")]
    for part in left:
        part.parent.mkdir(exist_ok=True)
        part.touch()
    asyncio.run(bench.host.pack.comfy_entrypoint())
    return {
        "names": [path.relative_to(bench.output).as_posix() for path in paths],
        "today": time.strftime("%Y-%m-%d"),
        "left": [part.exists() for part in left],
    }


def in_core(bench: Bench) -> Facts:
    """Core's own nodes on our vectors: what they save, and the weights that they and ours make of the pocket model."""
    import comfy.lora
    import safetensors.torch

    mix = bench.run("LCMLoRA_Arithmetic", a=bench.load("pocket_style"), b=bench.load("pocket_lcm"))[0]
    training = importlib.import_module("comfy_extras.nodes_train")
    bench.run(training.SaveLoRA, lora=mix, prefix="core")
    (saved,) = bench.output.glob("core*")
    model = bench.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")[0]
    before = dict(model.patches)
    core = bench.run(training.LoraModelLoader, model=model, lora=mix, strength_model=0.5)[0]
    ours = bench.run("LCMLoRA_ApplyVector", model=model, lora=mix, strength=0.5)[0]
    weights = model.model.state_dict()
    theirs, made = (
        {key: comfy.lora.calculate_weight(list(patches), weights[key].float().clone(), key)
         for key, patches in patched.patches.items()}
        for patched in (core, ours)
    )  # fmt: skip
    total = LoRAVector.from_state_dict(mix)
    deltas = [float((weight - weights[key].float()).norm()) for key, weight in theirs.items()]
    return {
        "saved": apart(safetensors.torch.load_file(saved), total),
        "modules": [len(total), len(theirs), len(made)],
        "apart": max(float((weight - made[key]).abs().max()) for key, weight in theirs.items()),
        "norms": [0.5 * total.norm(), sum(delta**2 for delta in deltas) ** 0.5],
        "model": model.patches == before,
    }


def expressions(bench: Bench) -> Facts:
    """What is said of bad expressions before anything runs, and whether a changed file is seen."""
    node = bench.host.classes["LCMLoRA_Expression"]
    (bench.folder / "loras" / "old").mkdir()
    (bench.folder / "loras" / "new").mkdir()
    for name in ("old/lcm", "old/twin", "new/twin", "file with spaces"):
        bench.lcm.save(bench.lora(name))
    (bench.folder / "loras" / "pickle.pt").write_bytes(b"\x80\x02")
    texts = {
        "syntax": "0.8*style + * lcm", "unknown": "0.8*styel", "several": "twin", "nothing": "zzz", "product": "a*b",
        "minus": "style-0.3", "number": "0.8", "empty": "", "pickle": "pickle",
    }  # fmt: skip
    facts: Facts = {name: node.validate_inputs(text) for name, text in texts.items()}
    good = ["style", "style.safetensors", "old/twin + lcm", "old\\twin", '0.5*"file with spaces"', "a + b", None]
    facts["good"] = [node.validate_inputs(text) for text in good]
    facts["unconnected"] = message(lambda: bench.run(node, expression="style + c"))
    facts["pickle runs"] = message(lambda: bench.run(node, expression='1*"pickle.pt"'))
    stamps = [node.fingerprint_inputs(text, a=None) for text in ("style", "lcm", None)]
    os.utime(bench.lora("style"), ns=(10**18, 10**18))
    after = [node.fingerprint_inputs(text, a=None) for text in ("style", "lcm", None)]
    load = bench.host.classes["LCMLoRA_LoadVector"]
    facts["changed"] = [a != b for a, b in zip(stamps, after, strict=True)]
    facts["loader changed"] = load.fingerprint_inputs("style.safetensors") != load.fingerprint_inputs("lcm.safetensors")
    facts["report"] = bench.run(node, expression="0.8*style + b", b=bench.b)[1]
    return facts


class Quantised(torch.Tensor):
    """Whole numbers that say the shape of the weight that they stand for, as loaders of quantised files have them."""

    @staticmethod
    def __new__(cls, weight: torch.Tensor):
        made = torch.Tensor._make_subclass(cls, torch.zeros(len(weight), weight[0].numel() // 2, dtype=torch.uint8))
        made.meant = weight.shape
        return made

    @property
    def shape(self) -> torch.Size:
        return self.meant

    def detach(self) -> Quantised:
        return self


def stored(bench: Bench) -> Facts:
    """A LoRA applied to models by how their linear weights are stored: patches of each, or why there are none."""
    facts: Facts = {}
    for name, store in {
        "float": lambda weight: weight.data,
        "fp8": lambda weight: weight.data.to(torch.float8_e4m3fn),
        "quantised": Quantised,
        "packed": lambda weight: torch.zeros(weight.numel() // 2, 1, dtype=torch.uint8),
    }.items():
        model = bench.run("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")[0]
        for module in model.model.diffusion_model.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_buffer("weight", store(module._parameters.pop("weight")))
        applied: list = []
        facts[name] = message(
            lambda: applied.append(bench.run("LCMLoRA_ApplyVector", model=model, lora=bench.a)[0])  # noqa: B023
        )
        facts[f"{name} patches"] = len(applied[0].patches) if applied else 0
    return facts


def interrupts(bench: Bench) -> Facts:
    """An interrupt at the first module of a combination: newer hosts leave out reports that follow soon after."""
    import comfy.model_management as management
    import comfy.utils

    inputs = {"a": bench.a, "b": bench.b, "method": "dare_linear"}
    before, seen = sorted(bench.folder.rglob("*")), []

    def hook(value, total, *_, **__):
        seen.append([value, total])
        if value == 1:
            management.interrupt_current_processing(True)

    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        bench.run("LCMLoRA_Combine", **inputs)
        stopped = False
    except management.InterruptProcessingException:
        stopped = True
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        management.interrupt_current_processing(False)
    again = bench.run("LCMLoRA_Combine", **inputs)[0]
    return {
        "stopped": stopped,
        "seen": seen,
        "files": sorted(bench.folder.rglob("*")) == before,
        "again": apart(again, combine([bench.style, bench.lcm], [1.0, 1.0], "dare_linear")),
    }


def pictures(bench: Bench) -> Facts:
    """A comparison's picture and text."""
    mix = bench.run("LCMLoRA_Arithmetic", a=bench.a, b=bench.b)[0]
    image, report = bench.run("LCMLoRA_Compare", a=bench.a, b=bench.b, d=mix, names="$style$, LCM, their sum")
    cosines = [bench.style.cosine(bench.lcm), bench.style.cosine(0.8 * bench.style + bench.lcm)]
    return {
        "shape": list(image.shape),
        "range": [float(image.min()), float(image.max())],
        "colours": len(torch.unique((image[0] * 255).round().to(torch.uint8).flatten(0, 1), dim=0)),
        "report": report,
        "cosines": [f"{cosine:.4f}" for cosine in cosines],
        "blocks": list(block_cosines(bench.style, bench.lcm)),
        "names": message(lambda: bench.run("LCMLoRA_Compare", a=bench.a, b=bench.b, names="one")),
    }


def curves(bench: Bench) -> Facts:
    """Where loss curves are drawn: the height of the ink in the left and the right quarter, 0 at the top; of one loss,
    losses that are all the same, and some that are 0, the picture's shape."""
    draw = bench.host.pack.nodes.plotting.loss_curve
    page = draw([1 / (step + 1) for step in range(200)])[0]
    blue = ((page[:, :, 2] - page[:, :, 0]) > 0.2)[60:360, 100:740].double()  # the plot without its title and labels
    heights = torch.arange(len(blue)).double() / len(blue)
    quarters = (blue[:, :160].sum(1), blue[:, -160:].sum(1))
    return {
        "falls": [float((heights * ink).sum() / ink.sum()) for ink in quarters],
        "odd": [list(draw(losses).shape) for losses in ([0.3], [0.2] * 50, [0.0, 0.0], [0.5, 0.0, 0.2])],
    }


def sweeps(bench: Bench) -> Facts:
    """Pairs, labels and the grid of pictures."""
    first, second, labels = bench.run("LCMLoRA_Sweep", lambda_1="0:0.8:0.4", lambda_2="0, .5 1")
    shades = [torch.full((2, 40, 30, 3), i / 9) for i in range(9)]
    texts = {"lambda_1": ["0:0.8:0.4"], "lambda_2": ["0, .5 1"]}
    grid = bench.run("LCMLoRA_SweepGrid", images=shades, **texts)[0]
    schema = bench.host.classes["LCMLoRA_SweepGrid"].GET_SCHEMA()
    outputs = bench.host.classes["LCMLoRA_Sweep"].GET_SCHEMA().outputs
    bad = {"word": "0, high", "endless": "0:1:0", "backwards": "1:0:0.5", "two": "0:1", "four": "0:1:2:3", "colon": ":",
           "nan": "nan", "empty": " ",
           "many": "0:1:0.001"}  # fmt: skip
    return {
        "pairs": [list(pair) for pair in zip(first, second, strict=True)],
        "labels": labels,
        "lists": [schema.is_input_list, *(output.is_output_list for output in outputs)],
        "grid": list(grid.shape),
        "last row": sorted({round(9 * float(v)) for v in grid[0, -12, :, 0].unique() if v < 0.99}),
        "descending": bench.run("LCMLoRA_Sweep", lambda_1="1:0:-0.5", lambda_2="0.1:0.3:0.1")[0::1][0][::3],
        "few": message(lambda: bench.run("LCMLoRA_SweepGrid", images=shades[:8], **texts)),
        "sizes": message(
            lambda: bench.run("LCMLoRA_SweepGrid", images=[*shades[:8], torch.zeros(1, 8, 8, 3)], **texts)
        ),
        "pairs refused": message(lambda: bench.run("LCMLoRA_Sweep", lambda_1="1:20:1", lambda_2="1:6:1")),
        **{name: message(lambda text=text: bench.run("LCMLoRA_Sweep", lambda_1=text)) for name, text in bad.items()},
    }


def refused(bench: Bench) -> Facts:
    """Bad inputs: the message of each; nothing is written for any."""
    run, a, b = bench.run, bench.a, bench.b
    before = sorted(bench.folder.rglob("*"))
    huge = run("LCMLoRA_Arithmetic", a=a, b=b, lambda_1=1e9)[0]
    vae = {"first_stage_model.x": torch.ones(1)}
    empty = run("LCMLoRA_BlockWeights", lora=a, weights="*: 0")[0]
    facts: Facts = {name: message(act) for name, act in {
        "empty": lambda: run("LCMLoRA_SaveVector", lora=empty),
        "empty pair": lambda: run("LCMLoRA_Compare", a=empty, b=empty),
        "lambda": lambda: run("LCMLoRA_Arithmetic", a=a, b=b, lambda_1=NAN),
        "weight": lambda: run("LCMLoRA_Combine", a=a, b=b, weight_a=NAN),
        "density": lambda: run("LCMLoRA_Combine", a=a, b=b, method="ties", density=NAN),
        "choice": lambda: run("LCMLoRA_Combine", a=a, b=b, method="mean"),
        "dialect": lambda: run("LCMLoRA_SaveVector", lora=a, dialect="webui"),
        "literal": lambda: run("LCMLoRA_Arithmetic", a="style", b=b),
        "numbers": lambda: run("LCMLoRA_Inspect", lora={"x": 1}),
        "three": lambda: run("LCMLoRA_Combine", a=a, b=b, c=a, method="slerp"),
        "further": lambda: run("LCMLoRA_Combine", a=a, b=b, more_weights="0.5, 1"),
        "epsilon": lambda: run("LCMLoRA_Combine", a=a, b=b, method="della", density=0.95),
        "ratio": lambda: run("LCMLoRA_Compress", lora=a, sv_ratio=0.5),
        "energy": lambda: run("LCMLoRA_Compress", lora=a, energy=NAN),
        "rest": lambda: run("LCMLoRA_BlockWeights", lora=a, rest=NAN),
        "list": lambda: run("LCMLoRA_BlockWeights", lora=a, weights="1, 0, 1"),
        "line": lambda: run("LCMLoRA_BlockWeights", lora=a, weights="M00"),
        "word": lambda: run("LCMLoRA_BlockWeights", lora=a, weights="M00: half"),
        "twice": lambda: run("LCMLoRA_BlockWeights", lora=a, weights="M00: 1\nM00: 0"),
        "pattern": lambda: run("LCMLoRA_BlockWeights", lora=a, weights="M0x*: 1"),
        "no lora": lambda: run("LCMLoRA_Inspect", lora=vae),
        "above": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix="../loras/x"),
        "absolute": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix=str(bench.folder / "x")),
        "drive": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix="C:\\x"),
        "endless": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix="a/" * 2000),
        "long": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix="new/" + "ü" * 120),
        "question": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix="new/what?"),
        "clock": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix="new/%date:hh:mm%"),
        "device": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix="nul/mix"),
        "unnamed": lambda: run("LCMLoRA_SaveVector", lora=a, filename_prefix=""),
        "float16": lambda: run("LCMLoRA_SaveVector", lora=huge, filename_prefix="new/huge"),
    }.items()}  # fmt: skip
    return facts | {"nothing written": sorted(bench.folder.rglob("*")) == before}


CHECKS = (
    *(imports, equal, extraction, records, widgets, growing, saving, in_core, stored, interrupts),
    *(pictures, curves, sweeps, refused, expressions),
)

if __name__ == "__main__":
    host = load_host(Path(sys.argv[1]), Path(sys.argv[2]))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        bench = Bench(host, Path(sys.argv[2]), Path(folder).resolve())
        print(json.dumps({check.__name__: check(bench) for check in CHECKS}))
