"""Speed, memory and error of LoRA arithmetic on files of real models' exact shapes, as tables.

python benchmarks/vectors.py [sd15 sdxl flux] [--rows ROW ...] [--rank 64] [--repeats 3] [--folder FOLDER]
                             [--comfyui COMFYUI BASE] [--json FILE]

Two files a family with random factors in float16 are made in a folder: the released LCM-LoRAs' modules of SD1.5 (278)
and SDXL (788) of rank 64, and all linear layers of Flux's blocks of rank 32. Every row is a process of its own: seconds
are the median of the repeats with the files in the page cache, in parentheses their spread; cpu is that of all threads;
memory is the peak beyond what the imports take. load is the machine's when the row began.

- copy:     both files' bytes from file to file, onto the disk
- merge:    0.8 a + 1.0 b, exact, from files to a file, as `lcm-lora merge`
- compress: the same, compressed to the rank
- ties ...: the same by a method of dense matrices, of the rank. Of Flux, as of PEFT, one module of every shape is
            merged and its time multiplied by the number of such modules; files are not counted.
- PEFT:     `add_weighted_adapter(combination_type="svd")` of the real PEFT on the same tensors, without full matrices,
            which its default would compute and throw away
- inspect:  what `lcm-lora inspect` reads of one file
- load:     `LoRAVector.load` of one file

The error is ||result - sum|| / ||sum|| against the dense sum in float64, of the smallest linear layer and convolution;
`best` is that of the truncated SVD in float64. With --comfyui (run it with ComfyUI's Python), Load Acceleration LoRA is
compared with core's LoraLoaderModelOnly on a Stable Diffusion 1.5 UNet of full size: the node alone, and with the
weights patched. So is a sum that LoRA Vector Arithmetic makes anew of two loaded vectors put on it, patches alone.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lcm_core.distill.adapters import LCM_TARGETS  # noqa: E402
from lcm_core.lora import LoRAVector, combine, write_lora  # noqa: E402
from lcm_core.lora.combine import NO_LIMITS, combine_lazily  # noqa: E402
from lcm_core.lora.file import LoRAFile  # noqa: E402
from lcm_core.lora.lazy import open_vector  # noqa: E402
from lcm_core.lora.lowrank import Factors, Limits  # noqa: E402
from lcm_core.lora.saving import keys_of, tensors_of  # noqa: E402
from lcm_core.streaming import write_streamed  # noqa: E402

WEIGHTS = (0.8, 1.0)
RANKS = {"sd15": 64, "sdxl": 64, "flux": 32}
DENSE = ("ties", "dare_linear", "magnitude_prune", "breadcrumbs", "della")
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
FAMILIES = {"sd15": {"cross_attention_dim": 768}, "sdxl": SDXL}


def shapes_of(family: str) -> dict[str, tuple[int, ...]]:
    """Module path -> weight shape of what an LCM-LoRA adapts, or a LoRA of Flux."""
    from diffusers import FluxTransformer2DModel, UNet2DConditionModel

    if family == "flux":
        with torch.device("meta"):
            blocks = [(n, m) for n, m in FluxTransformer2DModel().named_modules() if "transformer_blocks." in n]
        return {name: tuple(layer.weight.shape) for name, layer in blocks if isinstance(layer, nn.Linear)}
    with torch.device("meta"):
        unet = UNet2DConditionModel(**FAMILIES[family])
    layers = {name: m for name, m in unet.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    return {
        name: tuple(layer.weight.shape)
        for name, layer in layers.items()
        if any(f".{name}".endswith(f".{target}") for target in LCM_TARGETS)
    }


def write_file(path: Path, shapes: dict[str, tuple[int, ...]], rank: int, seed: int, prefix: str = "unet") -> None:
    """A LoRA in the released files' layout, with singular values that fall off as a trained one's do."""
    g = torch.Generator().manual_seed(seed)
    fall = torch.linspace(1, 0.1, rank)[:, None]
    state = {}
    for name, shape in shapes.items():
        key = f"lora_{prefix}_{name.replace('.', '_')}"
        down = torch.randn(rank, math.prod(shape[1:]), generator=g) * 0.02 * fall
        up = torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=g) * 0.02
        state[f"{key}.lora_down.weight"] = down.reshape(rank, *shape[1:]).half()
        state[f"{key}.lora_up.weight"] = up.half()
        state[f"{key}.alpha"] = torch.tensor(float(rank)).half()
    write_lora(path, state)


def copy(a: Path, b: Path, out: Path, rank: int) -> None:
    for i, path in enumerate((a, b)):
        with path.open("rb") as source, out.with_suffix(f".{i}").open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 24)
            target.flush()
            os.fsync(target.fileno())


def from_files(method: str, compressed: bool) -> Callable[[Path, Path, Path, int], None]:
    def act(a: Path, b: Path, out: Path, rank: int) -> None:
        limits = Limits(rank) if compressed else NO_LIMITS
        with open_vector(a) as x, open_vector(b) as y:
            vector = combine_lazily([x, y], WEIGHTS, method, limits=limits, dtype=torch.float16)
            write_streamed(out, keys_of(vector, "kohya"), tensors_of(vector, "kohya", torch.float16))

    return act


def sampled(act: Callable[[list[Factors], str, int], None]) -> Callable[[Path, Path, Path, int], tuple[float, float]]:
    """(seconds, of all cores together) of the files' modules, from one of every shape."""

    def row(a: Path, b: Path, out: Path, rank: int) -> tuple[float, float]:
        with open_vector(a) as x, open_vector(b) as y:
            shapes = {name: (f.shape, f.rank) for name, f in x.modules.items()}
            wall = cpu = 0.0
            for shape, count in Counter(shapes.values()).items():
                name = next(name for name, found in shapes.items() if found == shape)
                start, cpu_start = time.perf_counter(), time.process_time()
                act([x.modules[name], y.modules[name]], name, rank)
                wall += count * (time.perf_counter() - start)
                cpu += count * (time.process_time() - cpu_start)
        return wall, cpu

    return row


def by_method(method: str) -> Callable[[list[Factors], str, int], None]:
    def act(terms: list[Factors], name: str, rank: int) -> None:
        combine([LoRAVector({name: term}) for term in terms], WEIGHTS, method, rank=rank, dtype=torch.float16)

    return act


def peft_module(terms: list[Factors], name: str, rank: int) -> None:
    peft_merge(peft_model(terms), rank)


def inspect(a: Path, b: Path, out: Path, rank: int) -> None:
    LoRAFile.scan(a)


def load(a: Path, b: Path, out: Path, rank: int) -> None:
    LoRAVector.load(a)


def peft_model(terms: list[Factors]):
    """A PEFT model of one module with an adapter for each term."""
    from peft import LoraConfig, get_peft_model

    shape = terms[0].shape
    with torch.device("meta"):
        layer = nn.Linear(shape[1], shape[0]) if len(shape) == 2 else nn.Conv2d(shape[1], shape[0], shape[2:])
    model = None
    for i, factors in enumerate(terms):
        config = LoraConfig(r=factors.rank, lora_alpha=factors.alpha, target_modules=["0"], init_lora_weights=False)
        if model is None:
            model = get_peft_model(nn.Sequential(layer.to_empty(device="cpu")), config, "0")
        else:
            model.add_adapter(str(i), config)
    site = model.base_model.model[0]
    for i, factors in enumerate(terms):
        site.lora_A[str(i)].weight.data = factors.down.float()
        site.lora_B[str(i)].weight.data = factors.up.float()
    return model


def peft_merge(model, rank: int) -> Tensor:
    model.base_model.add_weighted_adapter(
        ["0", "1"], list(WEIGHTS), "mix", combination_type="svd", svd_rank=rank, svd_full_matrices=False
    )
    return model.base_model.model[0].get_delta_weight("mix")


def errors(a: Path, b: Path, rank: int) -> dict[str, float]:
    """Relative errors against the dense sum, over the smallest linear layer and the smallest convolution."""
    vectors = [LoRAVector.load(a), LoRAVector.load(b)]
    squares: Counter[str] = Counter()
    for dimensions in (2, 4):
        of_kind = [name for name, factors in vectors[0].modules.items() if len(factors.shape) == dimensions]
        if not of_kind:
            continue
        name = min(of_kind, key=lambda name: math.prod(vectors[0].modules[name].shape))
        terms = [vector.modules[name] for vector in vectors]
        single = [LoRAVector({name: term}) for term in terms]
        dense = sum(w * f.delta().double() for f, w in zip(terms, WEIGHTS, strict=True)).flatten(1)
        u, s, vh = torch.linalg.svd(dense, full_matrices=False)
        for row, result in {
            "merge": combine(single, WEIGHTS).delta(name),
            "compress": combine(single, WEIGHTS, rank=rank).delta(name),
            "PEFT": peft_merge(peft_model(terms), rank),
            "best": (u[:, :rank] * s[:rank]) @ vh[:rank],
            "sum": torch.zeros_like(dense),
        }.items():
            squares[row] += float((result.double().flatten(1) - dense).square().sum())
    return {row: math.sqrt(square / squares["sum"]) for row, square in squares.items() if row != "sum"}


Row = Callable[[Path, Path, Path, int], tuple[float, float] | None]


def rows_of(family: str) -> dict[str, Row]:
    """A family's rows by name."""
    dense = {name: sampled(by_method(name)) if family == "flux" else from_files(name, True) for name in DENSE}
    files = {"copy": copy, "merge": from_files("sum", False), "compress": from_files("sum", True)}
    return {**files, **dense, "PEFT": sampled(peft_module), "inspect": inspect, "load": load}


def row(family: str, name: str, a: Path, b: Path, out: Path, rank: int, repeats: int) -> dict[str, float]:
    """Median seconds and their spread, CPU seconds and peak memory in MB of a row, in this process."""
    if name == "PEFT":
        import peft  # noqa: F401
    load_before, before = os.getloadavg()[0], memory("VmRSS")
    times = []
    for _ in range(1 if name in ("PEFT", *DENSE) else repeats):
        start, cpu = time.perf_counter(), time.process_time()
        told = rows_of(family)[name](a, b, out, rank)
        times.append(told or (time.perf_counter() - start, time.process_time() - cpu))
    walls, cpus = zip(*times, strict=True)
    return {
        "seconds": statistics.median(walls), "spread": max(walls) - min(walls), "cpu": statistics.median(cpus),
        "MB": memory("VmHWM") - before, "load": load_before,
    }  # fmt: skip


def memory(entry: str) -> float:
    """MB of this process, from Linux: VmRSS now or VmHWM at its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(entry))
    return int(line.split()[1]) * 1024 / 1e6


def in_new_process(*arguments: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--row", *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def apply(comfyui: Path, base: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Seconds of our loader and core's for one file, and of a sum of two loaded vectors and its way onto the model, a
    Stable Diffusion 1.5 UNet of full size."""
    from tools.inprocess import load_host

    host = load_host(comfyui, base)
    import comfy.model_patcher
    import comfy.supported_models
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(folder))
    config = comfy.supported_models.SD15(
        {
            "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320, "num_res_blocks": [2] * 4,
            "channel_mult": [1, 2, 4, 4], "transformer_depth": [1] * 6 + [0] * 2, "transformer_depth_middle": 1,
            "transformer_depth_output": [1] * 9 + [0] * 3, "use_spatial_transformer": True, "legacy": False,
            "context_dim": 768, "num_heads": 8, "use_linear_in_transformer": False, "adm_in_channels": None,
            "use_temporal_attention": False,
        }
    )  # fmt: skip
    config.set_inference_dtype(torch.float16, None)
    network = config.get_model({}, "")
    for parameter in network.parameters():
        parameter.data.fill_(0.01)
    cpu = torch.device("cpu")
    model = comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)

    def ours():
        return host.run("LCMLoRA_Loader", model=model, lora_name="a.safetensors", strength=1.0)[0]

    def core():
        return host.run("LoraLoaderModelOnly", model=model, lora_name="a.safetensors", strength_model=1.0)[0]

    def patched(load: Callable) -> Callable:
        def act() -> None:
            loaded = load()
            loaded.patch_model()
            loaded.unpatch_model()

        return act

    loaded = [host.run("LCMLoRA_LoadVector", lora_name=f"{name}.safetensors")[0] for name in "ab"]
    sums: list[dict] = []

    def arithmetic() -> None:
        sums[:] = host.run("LCMLoRA_Arithmetic", a=loaded[0], lambda_1=0.8, b=loaded[1], lambda_2=1.0)

    def applied():
        return host.run("LCMLoRA_ApplyVector", model=model, lora=sums[0], strength=1.0)[0]

    return {
        **dict(zip(("LoRA Vector Arithmetic of two, s", "Apply LoRA Vector of its sum, s"),
                   in_turns(repeats, arithmetic, applied), strict=True)),
        **dict(zip(("Load Acceleration LoRA, s", "LoraLoaderModelOnly, s"),
                   in_turns(repeats, ours, core), strict=True)),
        **dict(zip(("the same with weights patched, s", "core's with weights patched, s"),
                   in_turns(max(1, repeats // 2), patched(ours), patched(core)), strict=True)),
    }  # fmt: skip


def in_turns(repeats: int, *acts: Callable[[], object]) -> list[float]:
    """Median seconds of each act, run in turns after one unmeasured turn."""
    seconds: list[list[float]] = [[] for _ in acts]
    for turn in range(repeats + 1):
        for act, kept in zip(acts, seconds, strict=True):
            start = time.perf_counter()
            act()
            if turn:
                kept.append(time.perf_counter() - start)
    return [statistics.median(kept) for kept in seconds]


def main() -> None:
    if sys.argv[1:2] == ["--row"]:
        family, name, a, b, out, rank, repeats = sys.argv[2:]
        print(json.dumps(row(family, name, Path(a), Path(b), Path(out), int(rank), int(repeats))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=["sd15"], help=f"of {', '.join(RANKS)}")
    parser.add_argument("--rows", nargs="+", help="these alone, besides copy")
    parser.add_argument("--rank", type=int, default=64, help="what is compressed to; of Flux at most 32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files lie, or are made and kept (default: a new one)")
    parser.add_argument("--comfyui", type=Path, nargs=2, metavar=("COMFYUI", "BASE"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        for family in args.families:
            folder, rank = args.folder or Path(temporary), min(args.rank, RANKS[family])
            a, b = (folder / f"{family}_{i}.safetensors" for i in (1, 2))
            for seed, path in enumerate((a, b)):
                if not path.exists():
                    prefix = "transformer" if family == "flux" else "unet"
                    write_file(path, shapes_of(family), RANKS[family], seed, prefix)
            given = (a.stat().st_size + b.stat().st_size) / 1e6
            print(f"\n{family}: rank {RANKS[family]}, two files of together {given:.0f} MB")
            print(f"{'':16}{'seconds':>20}{'cpu':>10}{'peak MB':>10}{'of files':>10}{'load':>7}")
            table = {}
            for name in ["copy", *(name for name in args.rows or list(rows_of(family)) if name != "copy")]:
                out = Path(temporary) / "out.safetensors"
                table[name] = found = in_new_process(family, name, a, b, out, rank, args.repeats)
                seconds = f"{found['seconds']:.2f} ({found['spread']:.2f})"
                print(
                    f"{name:16}{seconds:>20}{found['cpu']:10.2f}{found['MB']:10.0f}{found['MB'] / given:10.2f}"
                    f"{found['load']:7.1f}",
                    flush=True,
                )
            ratios = (("merge", "copy"), ("PEFT", "compress"))
            for name, other in ratios:
                if name in table and other in table:
                    ratio = table[name]["seconds"] / table[other]["seconds"]
                    print(f"{name} takes {ratio:.2f} × the time of {other}")
            results[family] = {"rows": table, "input MB": given}
            if family != "flux":
                results[family]["errors"] = off = errors(a, b, rank)
                print("errors:", ", ".join(f"{name} {value:.9f}" for name, value in off.items()))
        if args.comfyui:
            for seed, name in enumerate("ab"):
                write_file(Path(temporary) / f"{name}.safetensors", shapes_of("sd15"), RANKS["sd15"], seed)
            applied = apply(*args.comfyui, Path(temporary), args.repeats)
            print(*(f"{name:34}{value:8.3f}" for name, value in applied.items()), sep="\n")
            results["apply"] = applied
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
