"""Damages LoRA files at random and does with each what nodes and commands do.

python tests/fuzz/files.py --count 5000 --seed 0

A file must be read or refused: by a ValueError or OSError that names it, in one line that isn't long and says what to
do. What is read must stay the same vector in every dialect. The work is done in a process of limited time and memory.
It prints JSON, the numbers of files; its exit code is 1 after a crash, a hang, memory beyond the limit, an unexplained
error, a wrong result, a file outside of the output folder, a half-written one or one that is left over. `--keep DIR`
keeps what did it.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from lcm_core.cli import main as command_line  # noqa: E402
from lcm_core.cli.errors import DEFECT  # noqa: E402
from lcm_core.lora import LoRAVector, read_lora  # noqa: E402
from lcm_core.lora.file import LoRAFile  # noqa: E402
from tests.fuzz.damage import damaged  # noqa: E402
from tests.fuzz.seeds import seeds  # noqa: E402

SEEDS = seeds()
SECONDS = 10
MEMORY = 2**31  # bytes, beyond what the program takes by itself
LONGEST = 1500  # characters of an error
NO_MEMORY = "there is not enough memory"
BAD = ("crash", "hang", "memory", "unexplained", "wrong", "outside", "half-written", "left over")

Finding = tuple[str, str]


def check_error(error: BaseException, path: Path, names_file: bool) -> list[Finding]:
    text = str(error)
    kind = f"{type(error).__name__}: {text[:300]}"
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "allocat" in text):
        return [("memory", kind)]
    if type(error) is not ValueError and not isinstance(error, OSError):
        place = traceback.extract_tb(error.__traceback__)[-1]
        return [("unexplained", f"{kind} at {Path(place.filename).name}:{place.lineno}")]
    if names_file and path.name not in text and "adapter_config.json" not in text:
        return [("unexplained", f"does not name the file: {kind}")]
    if not re.search(r"; |\. [A-Z]", text):
        return [("unexplained", f"has no remedy: {kind}")]
    if len(text) > LONGEST:
        return [("unexplained", f"has {len(text)} characters: {kind}")]
    return []


def tried(step: str, path: Path, names_file: bool, act: Callable[[], Any]) -> tuple[Any, list[Finding]]:
    try:
        return act(), []
    except Exception as error:
        return None, [(kind, f"{step}: {text}") for kind, text in check_error(error, path, names_file)]


def apart(a: float, b: float) -> bool:
    """Whether two norms differ, where single precision can tell."""
    return 1e-12 < max(a, b) < 1e12 and not math.isclose(a, b, rel_tol=1e-3)


def check_vector(vector: LoRAVector, path: Path) -> list[Finding]:
    norm, findings = tried("norm", path, False, vector.norm)
    if norm is not None and not math.isfinite(norm):
        findings.append(("wrong", f"norm is {norm}"))
    for name, act in {
        "compress": lambda: vector.compress(rank=2), "energy": lambda: vector.compress(energy=0.9),
        "sum": lambda: (vector + 2 * vector).norm(), "cosine": lambda: vector.cosine(vector),
    }.items():  # fmt: skip
        findings += tried(name, path, False, act)[1]
    for dialect in ("kohya", "peft", "native"):
        state, found = tried(dialect, path, False, lambda d=dialect: vector.state_dict(d, torch.float32))
        findings += found
        if state:
            again, found = tried(f"{dialect} again", path, False, lambda s=state: LoRAVector.from_state_dict(s).norm())
            findings += found
            if again is not None and norm is not None and apart(again, norm):
                findings.append(("wrong", f"norm is {norm} and in {dialect} {again}"))
    return findings


def check_adapters(path: Path, vector: LoRAVector | None) -> list[Finding]:
    read, findings = tried("read", path, True, lambda: read_lora(path))
    adapters, found = tried("adapters", path, False, lambda: LoRAFile.of(*read).native()) if read else (None, [])
    findings += found
    if adapters and vector:
        norms, found = tried("both", path, False, lambda: [LoRAVector.from_state_dict(adapters).norm(), vector.norm()])
        findings += found
        if norms and apart(*norms):
            findings.append(("wrong", f"norms as adapters and as a vector are {norms}"))
    return findings


def check_commands(path: Path, readable: bool) -> list[Finding]:
    findings = []
    for argv in (
        ["inspect", "--norms", str(path)],
        ["convert", str(path), "-o", "out/converted.safetensors", "--dialect", "kohya"],
        ["resize", str(path), "-o", "out/small.safetensors", "--rank", "1"],
        ["merge", f"0.5*'{path}'", "-o", "out/merged.safetensors", "--dtype", "float32"],
    ):  # fmt: skip
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command_line([*argv, "--json"])
        result, lines = json.loads(out.getvalue()), err.getvalue().splitlines()
        said = result.get("error", "")
        if code not in (0, 1) or (code == 0 and not readable):
            findings.append(("wrong", f"{argv[0]}: exit code {code}, {'' if readable else 'not '}readable"))
        if code and NO_MEMORY in said:
            findings.append(("memory", f"{argv[0]}: {said[:300]}"))
        elif code and (DEFECT in said or lines[-1:] != [f"lcm-lora {argv[0]}: error: {said}"] or len(said) > LONGEST):
            findings.append(("unexplained", f"{argv[0]}: {said[:300]}"))
        elif code and not readable and path.name not in said and "adapter_config.json" not in said:
            findings.append(("unexplained", f"{argv[0]} does not name the file: {said[:300]}"))
    return findings


def check_folder(folder: Path, path: Path, content: bytes) -> list[Finding]:
    findings = []
    expected = {path, path.with_name("adapter_config.json"), folder / "out"}
    expected |= {folder / "out" / f"{name}.safetensors" for name in ("converted", "small", "merged")}
    for each in folder.rglob("*"):
        if each not in expected:
            findings.append(("left over", each.name))
        elif each.parent.name == "out":
            try:
                LoRAVector.load(each)
            except ValueError as error:
                findings.append(("half-written", f"{each.name}: {error}"[:300]))
    if path.read_bytes() != content:
        findings.append(("outside", "the file itself was changed"))
    return findings


def check(number: int, seed: int, folder: Path) -> tuple[bool, list[Finding]]:
    """(whether the file of this number is read as a vector, what is wrong)"""
    random = Random(f"{seed} {number}")
    file = damaged(random.choice(SEEDS), random)
    content = file.content(random)
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "out").mkdir(parents=True)
    os.chdir(folder)
    path = folder / ("adapter_model.safetensors" if file.config is not None else "lora.safetensors")
    path.write_bytes(content)
    if file.config is not None:
        path.with_name("adapter_config.json").write_text(file.config)
    OUTSIDE.clear()
    vector, findings = tried("load", path, True, lambda: LoRAVector.load(path))
    if vector:
        findings += check_vector(vector, path)
    findings += check_adapters(path, vector)
    findings += check_commands(path, vector is not None)
    findings += [("outside", each) for each in OUTSIDE]
    return vector is not None, findings + check_folder(folder, path, content)


OUTSIDE: list[str] = []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch(allowed: Path) -> None:
    """Notes what this process writes, renames or makes below another folder."""

    def audit(event: str, arguments: tuple) -> None:
        if event in ("os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate"):
            paths = [each for each in arguments if isinstance(each, (str, bytes, os.PathLike))]
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            paths = [arguments[0]]
        else:
            return
        for path in paths:
            if not isinstance(path, int) and not Path(os.path.abspath(os.fsdecode(path))).is_relative_to(allowed):
                OUTSIDE.append(f"{event} {os.fsdecode(path)}")

    sys.addaudithook(audit)


def work(seed: int, folder: Path, orders: Connection) -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
        if pages:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY))
    for seed_file in SEEDS:
        LoRAFile.of(*seed_file).native()  # torch makes a cache of its own at its first use
    watch(folder)
    orders.send("ready")
    while True:
        number = orders.recv()
        orders.send(check(number, seed, folder))


class Worker:
    """A process that checks one file after the other, until it takes too long or ends."""

    def __init__(self, seed: int, folder: Path) -> None:
        context = multiprocessing.get_context("fork")
        self.orders, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(seed, folder, theirs), daemon=True)
        self.process.start()
        theirs.close()
        self.orders.recv()

    def result(self, number: int) -> tuple[bool, list[Finding]]:
        """As `check`, once it is done; the worker is of no more use after a crash or a hang."""
        self.orders.send(number)
        if not self.orders.poll(SECONDS):
            self.process.kill()
            return False, [("hang", f"more than {SECONDS} s")]
        try:
            return self.orders.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return False, [("crash", f"exit code {self.process.exitcode}")]


def run(count: int, seed: int, folder: Path, keep: Path | None = None, first: int = 0) -> dict[str, Any]:
    """The counts of `count` files; `findings` has a line for each thing that is wrong."""
    worker = Worker(seed, folder / "0")
    counts: Counter[str] = Counter(files=count)
    findings = []
    for number in range(first, first + count):
        read, found = worker.result(number)
        counts["read"] += read
        counts.update({kind for kind, _ in found})
        findings += [f"{number} {kind}: {text}" for kind, text in found]
        if found and keep and (folder / "0").exists():
            shutil.copytree(folder / "0", keep / str(number), dirs_exist_ok=True)
        if not worker.process.is_alive():
            worker = Worker(seed, folder / "0")
    worker.process.kill()
    worker.process.join()
    return {**{name: counts[name] for name in ("files", "read", *BAD)}, "findings": findings}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the number of the first file, to do one again")
    parser.add_argument("--keep", type=Path, help="where the files go that were not handled well")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        found = run(arguments.count, arguments.seed, folder, arguments.keep, arguments.first)
    print(json.dumps(found, indent=1))
    return int(any(found[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
