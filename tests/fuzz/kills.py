"""Kills processes that save, and counts what that damages, loses or leaves.

python tests/fuzz/kills.py --count 100 --seed 0

A third of them save as the node does, each time under a new number, a third run `lcm-lora merge --force`, and a third
replace a file as trainings do with their state. SIGKILL ends each at a random moment of a save. Needs POSIX. It prints
JSON, and its exit code is 1 if any of damaged, lost, left, left_at_the_start is not 0.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from lcm_core.atomic import PART, remove_leftovers  # noqa: E402
from lcm_core.cli import main as command_line  # noqa: E402
from lcm_core.files import read_lora, write_lora, write_new  # noqa: E402
from lcm_core.lora import Factors, LoRAVector  # noqa: E402

NAME = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
SIDE = 768
RANK = 600  # 3 MB in float32


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((1_000_000,), value), "b": torch.full((10,), value, dtype=torch.float16)}


def save_new(folder: Path, value: int) -> Path:
    return write_new(folder, "mix", tensors(value), {"value": str(value)})


def save_state(folder: Path, value: int) -> Path:
    write_lora(folder / "state.safetensors", tensors(value), {"value": str(value)})
    return folder / "state.safetensors"


def merge(folder: Path, value: int) -> Path:
    path = folder / "merged.safetensors"
    code = command_line(["merge", f"{value}*'{folder / 'one.safetensors'}'", "-o", str(path), "--force", "--quiet"])
    assert code == 0
    return path


def whole(path: Path) -> bool:
    """Whether a file has what one save wrote, nothing of another."""
    state, metadata = read_lora(path)
    if path.name in ("merged.safetensors", "one.safetensors"):
        (factors,) = LoRAVector.from_state_dict(state, metadata).modules.values()
        down, up = (tensor.float().unique().numel() for tensor in (factors.down, factors.up))
        return factors.down.shape == (RANK, SIDE) and factors.up.shape == (SIDE, RANK) and down == up == 1
    return all((tensor == float(metadata["value"])).all() for tensor in state.values()) and len(state) == 2


def save_on(save: Callable[[Path, int], Path], folder: Path, saved: Connection) -> None:
    torch.set_num_threads(1)
    for value in range(1, 2000):
        saved.send(save(folder, value))


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if PART.fullmatch(path.name)]


def kill_one(save: Callable[[Path, int], Path], folder: Path, saves: int, delay: float) -> Counter[str]:
    """Starts a process that saves, kills it `delay` seconds into the save after `saves`, and looks at what there is."""
    context = multiprocessing.get_context("fork")
    saved, sender = context.Pipe(duplex=False)
    process = context.Process(target=save_on, args=(save, folder, sender))
    process.start()
    sender.close()
    done = {saved.recv() for _ in range(saves)}
    while not parts(folder) and process.is_alive():
        time.sleep(0.0005)
    time.sleep(delay)
    process.kill()
    process.join()
    with suppress(EOFError, OSError):
        while True:
            done.add(saved.recv())
    counts = Counter({"kills": 1, "saves": saves, "left by the kill": len(parts(folder))})
    for path in folder.glob("*.safetensors"):
        try:
            counts["damaged"] += not whole(path)
        except (ValueError, KeyError):
            counts["damaged"] += 1
    counts["lost"] = sum(not path.exists() for path in done)
    return counts


def run(count: int, seed: int, folder: Path) -> dict[str, int]:
    random_number = random.Random(seed)
    factors = Factors(torch.full((RANK, SIDE), 0.5), torch.full((SIDE, RANK), 0.25), 1.0)
    total: Counter[str] = Counter()
    for i in range(count):
        save = (save_new, merge, save_state)[i % 3]
        place = folder / save.__name__
        place.mkdir(exist_ok=True)
        if not (place / "one.safetensors").exists():
            LoRAVector({NAME: factors}).save(place / "one.safetensors", dtype=torch.float32)
        total += kill_one(save, place, random_number.randrange(4), random_number.uniform(0, 0.02))
        if i < count - 3:
            save(place, 1)
            total["left"] += len(parts(place))
            for path in place.glob("mix_*"):
                path.unlink()
        else:  # the last of each kind: the next is no save but a start
            remove_leftovers(place)
            total["left_at_the_start"] += len(parts(place))
    keys = ("kills", "saves", "left by the kill", "damaged", "lost", "left", "left_at_the_start")
    return {key: total[key] for key in keys}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        counts = run(arguments.count, arguments.seed, Path(temporary))
    print(json.dumps(counts))
    sys.exit(any(counts[key] for key in ("damaged", "lost", "left", "left_at_the_start")))
