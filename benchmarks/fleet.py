"""Pictures a second of scripts/ray_fleet.py on one machine, by the number of hosts, as a table.

Each host is a ComfyUI on the CPU with one thread, so hosts share the machine's memory and disk but no core. The clock
runs from the moment when every host has made its first picture, with models loaded, to the last picture.

python benchmarks/fleet.py COMFYUI BASE [--hosts 1 2] [--prompts 40] [--size 256]

COMFYUI and BASE are .host/comfyui and .host/base after `python tools/run.py demo`; give no more hosts than cores. It
needs Ray (`pip install ray`). Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Run:
    start: float  # seconds until every host was ready
    pictures: int  # made while the clock ran
    seconds: float

    @property
    def rate(self) -> float:
        return self.pictures / self.seconds


def run_fleet(comfyui: Path, base: Path, hosts: int, prompts: int, size: int) -> Run:
    """The fleet's own output, timed as it comes. RuntimeError if it fails or a host made nothing."""
    token = {"RAY_AUTH_TOKEN": os.urandom(16).hex()}  # so that Ray writes none into the home folder
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "scripts" / "ray_fleet.py")]
        command += ["--comfyui", str(comfyui), "--output", folder]
        command += ["--hosts", str(hosts), "--gpus", "0", "--prompt", "cat", "--seeds", f"0:{prompts}"]
        command += ["--set", "5.batch_size=1", "--set", f"5.width={size}", "--set", f"5.height={size}"]
        command += ["--set", "1.ckpt_name=pocket.safetensors", "--set", "2.lora_name=pocket_lcm.safetensors"]
        command += ["--", "--cpu", "--base-directory", str(base), "--disable-api-nodes"]
        environment = os.environ | THREADS | token | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}
        begin, ready, made = time.monotonic(), 0.0, []
        with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8", env=environment) as fleet:
            assert fleet.stdout is not None
            for line in fleet.stdout:
                if line.startswith("host: "):
                    ready = time.monotonic() - begin
                elif found := re.match(rf"\d+ of {prompts}: .* from (.+)", line):
                    made.append((found[1], time.monotonic()))
    firsts = {host: i for i, (host, _) in reversed(list(enumerate(made)))}
    if fleet.returncode or len(firsts) < hosts:
        raise RuntimeError(f"the fleet ended with {fleet.returncode}; {len(firsts)} of {hosts} hosts made pictures")
    warm = max(firsts.values())
    return Run(ready, len(made) - 1 - warm, made[-1][1] - made[warm][1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--size", type=int, default=256)
    args = parser.parse_args()
    if min(args.hosts) < 1 or args.prompts < 4 * max(args.hosts):
        parser.error(f"--prompts {args.prompts} is too few for {max(args.hosts)} hosts; give at least 4 for each")
    print("| hosts | ready after, s | pictures timed | pictures a second | of ideal |\n|--:|--:|--:|--:|--:|")
    each = 0.0  # the first row's pictures a second of one host
    for hosts in args.hosts:
        run = run_fleet(args.comfyui.resolve(), args.base.resolve(), hosts, args.prompts, args.size)
        each = each or run.rate / hosts
        share = run.rate / (hosts * each)
        print(f"| {hosts} | {run.start:.0f} | {run.pictures} | {run.rate:.3f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    main()
