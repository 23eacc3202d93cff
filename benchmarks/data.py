"""What a distillation's data takes: time, memory and disk to encode pictures, to find them again, to read a batch.

python benchmarks/data.py [--pictures 10000 100000] [--folder 100000] [--work DIR]

1. For each number of pictures: tar files of 64 × 64 JPEGs with captions, made first, are encoded by the pocket model's
   autoencoder and text encoder into a cache, in a process of its own; then another process finds them there and trains
   the pocket model's LoRA by LCD, 4 latents a step. Memory is the peak resident size (VmHWM), less what was resident
   before. `share` is the time that the training waits for its batches, of all its time.
2. A folder of so many pictures is listed, with all its captions, and found again in a cache by its stamps.
3. Batches of 12 samples as large as SD1.5's and SDXL's, float32, are read from 1000 of them, in their shuffled order:
   from the system's memory, and after its copies were dropped, from the disk.

All on the CPU, with as many threads as OMP_NUM_THREADS says. Times are medians, with the quartiles.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from lcm_core.distill import DistillConfig, distill, inject_lora  # noqa: E402
from lcm_core.distill.data.cache import Stored, store  # noqa: E402
from lcm_core.distill.data.encoding import pictures_by  # noqa: E402
from lcm_core.distill.data.examples import StoredExamples  # noqa: E402
from lcm_core.distill.data.folder import folder_parts  # noqa: E402
from lcm_core.distill.data.pictures import Views, bucket_sizes  # noqa: E402
from lcm_core.distill.data.prepare import parts_of  # noqa: E402
from lcm_core.distill.data.shards import Made  # noqa: E402
from lcm_core.distill.data.source import Part, Sample  # noqa: E402
from pocket.autoencoder import load_autoencoder  # noqa: E402
from pocket.teacher import SCHEDULE, load_teacher  # noqa: E402

SIDE, IN_TAR, STEPS = 64, 1000, 100
WORDS = ("cat", "car", "sun", "tulip")
SHAPES = {
    "SD1.5, 512 pixels": ((4, 64, 64), [(77, 768)]),
    "SDXL, 1024 pixels": ((4, 128, 128), [(77, 2048), (1280,), (6,)]),
}


class Pocket:
    """The pocket model as what encodes and as a teacher; a latent may also be four colours' means of 8 × 8 pixels."""

    def __init__(self, means: bool) -> None:
        self.autoencoder, _ = load_autoencoder()
        if means:
            self.autoencoder = lambda pixels: torch.nn.functional.avg_pool2d(pixels, 8)[:, [0, 1, 2, 0]] * 4 - 2
        self.network, self.words = load_teacher()
        self.network.requires_grad_(False)

    def encode(self, pixels):
        return self.autoencoder(pixels)

    def conditions_of(self, prompts: Sequence[str], size: tuple[int, int]):
        with torch.no_grad():
            rows = self.words(self.words.index([prompt.split() for prompt in prompts]))
        return list(zip(*rows, strict=True))

    def __call__(self, x, t, cond, omega):
        return self.network(x, t, *cond)


def memory(field: str) -> int:
    """Of this process in bytes: VmRSS now, or VmHWM at most."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(text.partition(f"{field}:")[2].split()[0])


def picture(random: np.random.Generator) -> bytes:
    coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), np.uint8))
    content = io.BytesIO()
    coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(content, "jpeg", quality=90)
    return content.getvalue()


def samples(count: int) -> Iterator[tuple[str, bytes, bytes]]:
    random = np.random.default_rng(0)
    for i in range(count):
        yield f"{i:06}", picture(random), WORDS[random.integers(len(WORDS))].encode()


def make_tars(folder: Path, count: int) -> None:
    folder.mkdir()
    made = samples(count)
    for k in range(0, count, IN_TAR):
        with tarfile.open(folder / f"{k // IN_TAR:04}.tar", "w") as tar:
            for name, content, caption in itertools.islice(made, IN_TAR):
                for suffix, data in (("jpg", content), ("txt", caption)):
                    info = tarfile.TarInfo(f"{name}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    settle(folder)


def make_folder(folder: Path, count: int) -> None:
    folder.mkdir()
    for name, content, caption in samples(count):
        (folder / f"{name}.jpg").write_bytes(content)
        (folder / f"{name}.txt").write_bytes(caption)
    settle(folder)


def settle(folder: Path) -> None:
    """Make files old enough to be known by their times."""
    for path in folder.iterdir():
        os.utime(path, (time.time() - 60,) * 2)


def stored(parts: Sequence[Part], cache: Path, pocket: Pocket) -> Stored:
    make = pictures_by(pocket, bucket_sizes(SIDE * SIDE, 64), Views(), 32)
    return store(cache, parts, "pocket", make, lambda done, total: None)


def in_process(means: bool, act: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What act(pocket, *arguments) returns in a process of its own, with its seconds and its peak memory in MB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measured, (means, act, arguments))


def measured(means: bool, act: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    pocket = Pocket(means)
    pocket.encode(torch.zeros(32, 3, SIDE, SIDE))
    before, start = memory("VmRSS"), time.perf_counter()
    result = act(pocket, *arguments)
    return {"seconds": time.perf_counter() - start, **result, "peak MB": (memory("VmHWM") - before) / 1e6}


def encode(pocket: Pocket, data: Path, cache: Path) -> dict[str, Any]:
    start = time.perf_counter()
    result = stored(parts_of(str(data)), cache, pocket)
    size = sum(path.stat().st_size for path in result.shards.files)
    return {
        "made": result.made,
        "a second": result.made / (time.perf_counter() - start),
        "files": len(result.shards.files),
        "cache MB": size / 1e6,
    }


def train(pocket: Pocket, data: Path, cache: Path) -> dict[str, Any]:
    start = time.perf_counter()
    result = stored(parts_of(str(data)), cache, pocket)
    found = time.perf_counter() - start
    empty = pocket.conditions_of([""], (SIDE, SIDE))[0]
    examples = StoredExamples(result.shards, 4, uncond=lambda shape: empty)
    waited: list[float] = []

    def batches(step: int):
        begun = time.perf_counter()
        batch = examples(step)
        waited.append(time.perf_counter() - begun)
        return batch

    config = DistillConfig(steps=STEPS, omega=(1.0, 2.0))
    adapter = inject_lora(pocket.network, rank=16)
    times = []
    begun = time.perf_counter()
    for _ in distill(pocket, adapter, batches, config, schedule=SCHEDULE):
        times.append(time.perf_counter() - begun)
        begun = time.perf_counter()
    shares = [wait / whole for wait, whole in zip(waited[5:], times[5:], strict=True)]
    return {
        "made": result.made,
        "found": found,
        "step ms": spread(times[5:], 1e3),
        "batch ms": spread(waited[5:], 1e3),
        "share %": spread(shares, 100),
        "first batch ms": waited[0] * 1e3,
    }


def listing(pocket: Pocket, data: Path, cache: Path) -> dict[str, Any]:
    start = time.perf_counter()
    parts = folder_parts(data)
    listed = time.perf_counter() - start
    start = time.perf_counter()
    stamps = [part.stamp() for part in parts]
    return {"listed": listed, "stamps": time.perf_counter() - start, "parts": len(stamps)}


def large(pocket: Pocket, name: str, cache: Path) -> dict[str, Any]:
    """Reading of batches of 12, warm and cold."""
    latents, cond = SHAPES[name]

    def make(some: Sequence[Sample]) -> Iterator[tuple[int, Made]]:
        for i in range(len(some)):
            yield i, Made(torch.randn(1, *latents), tuple(torch.randn(shape) for shape in cond))

    def part(k: int) -> Part:
        return Part(lambda: k, lambda: (Sample("", f"{k}.{i}".encode(), "") for i in range(100)), 100)

    shards = store(cache, [part(k) for k in range(10)], name, make, lambda done, total: None).shards
    examples = StoredExamples(shards, 12)
    kinds = {"warm": [], "cold": []}
    os.sync()
    for step in range(60):
        for kind, times in kinds.items():
            if kind == "cold":
                drop(shards.files)
            start = time.perf_counter()
            examples.read(step)
            times.append(time.perf_counter() - start)
    return {kind: spread(times, 1e3) for kind, times in kinds.items()} | {
        "MB a batch": 12 * 4 * sum(int(np.prod(shape)) for shape in (latents, *cond)) / 1e6
    }


def drop(files: Sequence[Path]) -> None:
    """Have the system forget its copies of files."""
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def spread(values: Sequence[float], unit: float) -> str:
    low, middle, high = (unit * value for value in statistics.quantiles(values, n=4))
    return f"{middle:.3g} ({low:.3g}-{high:.3g})"


def shown(name: str, result: dict[str, Any]) -> None:
    values = {key: round(value, 4) if isinstance(value, float) else value for key, value in result.items()}
    print(name, json.dumps(values), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="*", default=[10_000, 100_000], help="in tar files")
    parser.add_argument(
        "--means", action="store_true", help="latents are means of pixels in place of the autoencoder's, so that the "
        "rest of the work on data is measured",
    )  # fmt: skip
    parser.add_argument("--folder", type=int, default=100_000, help="pictures of a folder that is listed; 0 for none")
    parser.add_argument(
        "--work", type=Path, help="where files are made for the time of the run (default: a new folder)"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as place:
        work = Path(place)
        for count in args.pictures:
            make_tars(work / f"tars{count}", count)
            shown(f"encode {count}", in_process(args.means, encode, work / f"tars{count}", work / f"cache{count}"))
            shown(f"train on {count}", in_process(args.means, train, work / f"tars{count}", work / f"cache{count}"))
        if args.folder:
            make_folder(work / "folder", args.folder)
            shown(f"list {args.folder}", in_process(args.means, listing, work / "folder", work / "none"))
        for name in SHAPES:
            shown(name, in_process(args.means, large, name, work / name.partition(",")[0]))


if __name__ == "__main__":
    main()
