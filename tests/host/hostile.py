"""Hostile prompts against a ComfyUI with this pack: what they crash, hang, write elsewhere, inject, leave bare.

.venv/bin/python tests/host/hostile.py --count 1000 --seed 0

`python tools/run.py test` makes the .venv and .host that it needs. It prints a report as JSON, with the graph of each
finding, and ends with exit code 1 if there is one. What the prompts write goes to a temporary folder.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shlex
import sys
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from safetensors import SafetensorError, safe_open

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from hostile_prompts import prompt  # noqa: E402

from tools.comfy_client import FINAL, Client, Graph  # noqa: E402
from tools.host_process import HostProcess  # noqa: E402

TEXT = (3).to_bytes(4, "big")  # a binary message: this, the length of the node's id in 4 bytes, the id, a text
EXPLAINED = {"ValueError", "OSError", "FileNotFoundError", "FileExistsError", "NotADirectoryError", "LookupError"}
BARE = ("invalid literal", "could not convert", "maximum recursion", "Expecting value", "object has no attribute")
TIMEOUT = 120.0


@dataclass
class Report:
    prompts: int = 0
    ended: Counter = field(default_factory=Counter)
    explained: Counter = field(default_factory=Counter)
    findings: list[dict] = field(default_factory=list)

    def find(self, kind: str, said: object, graph: Graph | None = None) -> None:
        self.findings.append({"kind": kind, "said": str(said)[:1500], "graph": graph})


async def attack(url: str, count: int, seed: int, report: Report, alive, check_files, absolute: str) -> None:
    draw, info, client_id = random.Random(seed), Client(url).object_info(), uuid.uuid4().hex
    async with (
        aiohttp.ClientSession(url) as session,
        session.ws_connect(f"/ws?clientId={client_id}", max_msg_size=0) as socket,
    ):
        for _ in range(count):
            graph = prompt(draw, info, absolute)
            report.prompts += 1
            try:
                await asyncio.wait_for(one(session, socket, client_id, graph, report), TIMEOUT)
            except TimeoutError:
                report.find("hang", f"no end within {TIMEOUT:.0f} s", graph)
                return
            except (aiohttp.ClientError, ConnectionError) as error:
                report.find("connection lost", error, graph)
            if not alive():
                report.find("crash", "the server's process has ended", graph)
                return
            check_files(graph)


async def one(session, socket, client_id: str, graph: Graph, report: Report) -> None:
    """Queue a graph, follow it to its end, and judge what is said."""
    as_json = {"Content-Type": "application/json"}
    async with session.post("/prompt", data=dumped(graph, client_id), headers=as_json) as response:
        status, answer = response.status, await response.text()
    if status != 200:
        report.ended[f"refused {status}"] += 1
        judge_refusal(answer, graph, report)
        return
    prompt_id = json.loads(answer)["prompt_id"]
    for problem in json.loads(answer).get("node_errors", {}).values():
        judge_refusal(json.dumps(problem), graph, report)
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY and message.data[:4] == TEXT:
            length = int.from_bytes(message.data[4:8], "big")
            text = message.data[8 + length :].decode()
            if "<" in text or "[[" in text or "__LNK" in text:
                report.find("injected", text, graph)
        if message.type is not aiohttp.WSMsgType.TEXT:
            continue
        event = json.loads(message.data)
        if event["type"] not in FINAL or event["data"].get("prompt_id") != prompt_id:
            continue
        report.ended[event["type"]] += 1
        if event["type"] == "execution_error":
            judge(event["data"], graph, report)
        return


def dumped(graph: Graph, client_id: str) -> bytes:
    sys.set_int_max_str_digits(0)
    return json.dumps({"prompt": graph, "client_id": client_id}).encode()


def is_ours(place: str) -> bool:
    ours = ("custom_nodes/lcm-lora/", *(f"{(ROOT / folder).as_posix()}/" for folder in ("nodes", "lcm_core")))
    return any(folder in place.replace("\\", "/") for folder in ours)


def judge(error: dict, graph: Graph, report: Report) -> None:
    """A finding unless the exception was raised by the host alone, or is explained."""
    kind, said, trace = error["exception_type"], error["exception_message"], error["traceback"]
    if not any(map(is_ours, trace)):
        report.explained["raised by the host's own nodes"] += 1
        return
    if kind not in EXPLAINED or any(bare in said for bare in BARE) or not said.strip() or len(said) > 1200:
        report.find(f"unexplained {kind}", f"{said}\n{''.join(trace[-3:])}", graph)
    else:
        report.explained[kind] += 1


def judge_refusal(answer: str, graph: Graph, report: Report) -> None:
    """A finding if the host's validation met an exception of ours."""
    if '"traceback"' in answer and any(is_ours(line) for line in answer.split('"traceback"')[1:]):
        report.find("exception while validating", answer, graph)


def listing(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*") if not path.is_dir()}


def run(comfyui: Path, python: str, base: Path, arguments: list[str], count: int, seed: int) -> Report:
    report, start = Report(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        outside, output = root / "outside", root / "out" / "output"
        for path in (outside, output, root / "out" / "temp", root / "out" / "user"):
            path.mkdir(parents=True)
        arguments = [*arguments, "--database-url", f"sqlite:///{(root / 'host.db').as_posix()}"]
        for name in ("output", "temp", "user"):
            arguments += [f"--{name}-directory", str(root / "out" / name)]
        before = listing(base / "models", base / "input", base / "output", base / "user")
        checked: set[Path] = set()

        def check_files(graph: Graph) -> None:
            strays = listing(outside, base / "models", base / "input", base / "output", base / "user") - before
            strays |= {path for path in (root / "out").iterdir() if path.name not in ("output", "temp", "user")}
            for path in strays:
                report.find("file outside the output folder", path, graph)
            before.update(strays)
            for path in listing(output) - checked:
                checked.add(path)
                if path.suffix == ".safetensors":
                    try:
                        with safe_open(path, framework="np") as opened:
                            list(opened.keys())
                    except (SafetensorError, OSError) as error:
                        report.find("half-written file", f"{path}: {error}", graph)
                else:
                    report.find("half-written file", path, graph)

        with HostProcess(comfyui, python, base, root / "host.log", arguments) as host:
            host.wait_ready()
            alive = lambda: host.process.poll() is None  # noqa: E731
            asyncio.run(attack(host.url, count, seed, report, alive, check_files, f"{outside}/x"))
    report.ended["seconds"] = round(time.monotonic() - start)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    work = ROOT / ".host"
    report = run(
        Path(os.environ.get("LCM_HOST_DIR", work / "comfyui")),
        os.environ.get("LCM_HOST_PYTHON", sys.executable),
        Path(os.environ.get("LCM_HOST_BASE", work / "base")),
        shlex.split(os.environ.get("LCM_HOST_ARGS", "--cpu")),
        args.count,
        args.seed,
    )
    kinds = Counter(finding["kind"] for finding in report.findings)
    print(json.dumps(vars(report) | {"found": kinds}))
    raise SystemExit(bool(report.findings))


if __name__ == "__main__":
    main()
