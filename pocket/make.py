"""Make the pocket model's weights anew from the registries' drawings: every stage in its order, or some of them.

`python -m pocket.make` runs all of them, on the GPU if there is one; `--stage teacher lcm` runs these two. A stage that
was stopped goes on from `--cache`; one that is done starts from what it has there and only writes its weights again, so
delete `<stage>.pt` (for lcm `lcm_lora.safetensors`) to train it anew.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

STAGES = ("autoencoder", "judge", "teacher", "lcm", "style")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=STAGES)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="drawings and checkpoints (.cache)")
    parser.add_argument("--processes", type=int, default=1, help="that share each batch, for CPUs (default 1)")
    args = parser.parse_args()
    starter = [sys.executable, "-m"]
    if args.processes > 1:
        starter += ["torch.distributed.run", "--nproc-per-node", str(args.processes), "-m"]
    seconds = {}
    for stage in (name for name in STAGES if name in args.stage):
        start = time.perf_counter()
        subprocess.run([*starter, f"pocket.{stage}", "--cache", str(args.cache)], check=True)
        seconds[stage] = time.perf_counter() - start
    print("\n".join(f"{stage}: {spent / 60:.1f} minutes" for stage, spent in seconds.items()))


if __name__ == "__main__":
    main()
