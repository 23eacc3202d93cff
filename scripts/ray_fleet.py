"""Many prompts on many ComfyUI hosts, with Ray: on a laptop, or on every machine that has joined with `ray start`.

pip install ray aiohttp
python scripts/ray_fleet.py --comfyui ~/ComfyUI --hosts 2 --prompt cat --prompt dog --seeds 0:20
python scripts/ray_fleet.py --address auto --comfyui /opt/ComfyUI --hosts 8 --jobs jobs.jsonl -- --highvram
python scripts/ray_fleet.py --url http://10.0.0.5:8188 --url http://10.0.0.6:8188 --prompt cat --seeds 0:100

A line of jobs.jsonl is one prompt, with the settings of queue_prompt.py: {"prompt": "cat", "seed": 7, "5.width": 512}.
Pictures are named by the prompt's place in the list, from 00000.png. What follows `--` goes to ComfyUI's main.py.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import queue_prompt
import ray
from queue_prompt import TEMPLATE, Graph, PromptError, assignment, customise, read_workflow, run_prompt, save
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import ActorPool

ray.cloudpickle.register_pickle_by_value(queue_prompt)  # so that no other machine needs that file
WORKFLOW = Path(__file__).resolve().parent.parent / "workflows" / "api" / f"{TEMPLATE}.json"
Job = dict[str, Any]
Result = tuple[int, str, list[bytes] | str]  # the prompt's index, who made it, its pictures or what went wrong


@ray.remote(max_restarts=-1, max_task_retries=20, scheduling_strategy="SPREAD")
class Host:
    """One ComfyUI, started by `command` or running at `url`.

    When it is lost the actor ends. Ray then starts the actor anew, on any machine with room, and gives it its prompt
    again, up to 20 times: about seven pass before Ray notices that a whole machine is gone.
    """

    def __init__(self, command: list[str] | None, url: str, scratch: str, patience: float) -> None:
        self.url, self.name, self.process, self.patience = url, url, None, patience
        self.scratch = Path(tempfile.gettempdir(), scratch)
        if command:
            self.start(command)
        deadline = time.monotonic() + patience
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/system_stats", timeout=5).close()
                return
            except OSError as error:
                ended = self.process and self.process.poll() is not None
                if ended or time.monotonic() > deadline:
                    message = f"no ComfyUI at {self.url}: {error}\n{self.log_tail()}"
                    self.stop()
                    raise RuntimeError(message) from None
            time.sleep(0.2)

    def start(self, command: list[str]) -> None:
        """A ComfyUI of our own; its folders are its own too, since two that share them overwrite each other's files."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        folders = []
        for name in ("output", "temp", "user"):
            (self.scratch / name).mkdir(parents=True, exist_ok=True)
            folders += [f"--{name}-directory", str(self.scratch / name)]
        database = f"sqlite:///{(self.scratch / 'comfyui.db').as_posix()}"
        command = [*command, "--listen", "127.0.0.1", "--port", str(port), "--database-url", database, *folders]
        if setpriv := shutil.which("setpriv"):  # on Linux: killed with this actor, whatever kills it
            command = [setpriv, "--pdeathsig", "KILL", *command]
        with (self.scratch / "log.txt").open("wb") as log:
            environment = os.environ | {"PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        self.url = f"http://127.0.0.1:{port}"
        self.name = f"{self.url} on {socket.gethostname()}, process {self.process.pid}"

    def log_tail(self) -> str:
        log = self.scratch / "log.txt"
        return log.read_text(encoding="utf-8", errors="replace")[-2000:] if log.exists() else ""

    def ready(self) -> str:
        """This host's name; Ray answers it when __init__ is through."""
        return self.name

    def render(self, index: int, template: Graph, job: Job) -> Result:
        graph, _ = customise(template, job)
        for node in graph.values():
            if "filename_prefix" in node["inputs"]:  # a file of its own, should hosts share an output folder
                node["inputs"]["filename_prefix"] = f"fleet_{self.scratch.name}_{index:05}"
        try:
            return index, self.name, run_prompt(self.url, graph, timeout=self.patience)
        except PromptError as error:
            return index, self.name, str(error)
        except OSError as error:
            print(f"{self.name} is lost: {error}", file=sys.stderr, flush=True)
            if self.process:
                self.process.kill()
            os._exit(1)
        finally:
            for file in (self.scratch / "output").glob("*.*"):
                file.unlink()

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(10)
            shutil.rmtree(self.scratch, ignore_errors=True)


def render_all(hosts: list, template: Graph, jobs: dict[int, Job], patience: float) -> Iterator[Result]:
    """Each prompt's result as it is there, and once; a prompt whose host died for good has none."""
    pool, template_ref = ActorPool(hosts), ray.put(template)
    for index, job in jobs.items():
        pool.submit(lambda host, item: host.render.remote(item[0], template_ref, item[1]), (index, job))
    while pool.has_next():
        try:
            yield pool.get_next_unordered(timeout=3 * patience)
        except RayActorError as error:
            print(error, file=sys.stderr, flush=True)


def seeds(text: str) -> range:
    """ "7" or "0:20", the second without its end."""
    first, colon, end = text.partition(":")
    return range(int(first), int(end) if colon else int(first) + 1)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="local", help="of a Ray cluster; `auto` finds this machine's")
    parser.add_argument("--comfyui", metavar="DIR", help="ComfyUI's folder, the same on every machine")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs ComfyUI (default: this one)")
    parser.add_argument("--hosts", type=int, default=1, help="how many to start (default: %(default)s)")
    parser.add_argument("--cpus", type=int, default=1, help="cores, and threads, of each host (default: %(default)s)")
    parser.add_argument("--gpus", type=float, help="GPUs of each host (default: 1 where the cluster has any)")
    parser.add_argument("--url", action="append", default=[], help="a running ComfyUI, in place of --comfyui")
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="API format (default: text-to-image)")
    parser.add_argument("--jobs", type=Path, help="JSON lines, one prompt each; or --prompt and --seeds")
    parser.add_argument("--prompt", action="append", default=[])
    parser.add_argument("--seeds", type=seeds, default=range(1), metavar="FIRST:END")
    parser.add_argument("--set", type=assignment, action="append", default=[], metavar="NODE.input=value")
    parser.add_argument("--output", type=Path, default=Path("pictures"), help="the folder (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="make only the pictures that the folder lacks")
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds of silence, after which a host counts as lost"
    )
    parser.add_argument("host_args", nargs="*", metavar="-- ARGS", help="for ComfyUI's main.py")
    args = parser.parse_args()
    if bool(args.comfyui) == bool(args.url):
        parser.error("give --comfyui DIR, to start hosts, or --url for each that runs already")
    if bool(args.jobs) == bool(args.prompt):
        parser.error("give --jobs FILE or --prompt TEXT")
    return args


def read_job(line: str, where: str) -> Job:
    with contextlib.suppress(ValueError):
        if isinstance(job := json.loads(line), dict):
            return job
    raise ValueError(f'{where} is not a JSON object like {{"prompt": "cat", "seed": 7}}: {line[:80]}')


def read_jobs(args: argparse.Namespace) -> dict[int, Job]:
    """The prompts by their index, without those that --resume finds done."""
    if args.jobs:
        lines = args.jobs.read_text(encoding="utf-8").splitlines()
        jobs = [read_job(line, f"{args.jobs}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    else:
        jobs = [{"prompt": prompt, "seed": seed} for prompt, seed in itertools.product(args.prompt, args.seeds)]
    done = {path.stem.removesuffix("_1") for path in args.output.glob("*.png")} if args.resume else set()
    return {index: dict(args.set) | job for index, job in enumerate(jobs) if f"{index:05}" not in done}


def start_hosts(args: argparse.Namespace) -> list:
    """The actors, when every host is ready."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a local cluster; Ray's own 15 would slow ComfyUI down too
    local = {"num_cpus": args.hosts * args.cpus, "include_dashboard": False} if args.address == "local" else {}
    ray.init(args.address, logging_level="WARNING", **local)
    run = f"fleet_{uuid.uuid4().hex[:8]}"
    if args.url:
        needs = {"num_cpus": 0}
        each = [(None, url.rstrip("/")) for url in args.url]
    else:
        gpus = min(1, ray.cluster_resources().get("GPU", 0)) if args.gpus is None else args.gpus
        needs = {"num_cpus": args.cpus, "num_gpus": gpus}
        command = [args.python, str(Path(args.comfyui, "main.py")), "--disable-auto-launch", *args.host_args]
        each = [(command, "")] * args.hosts
    hosts = [Host.options(**needs).remote(*one, f"{run}_{i}", args.patience) for i, one in enumerate(each)]
    try:
        for name in ray.get([host.ready.remote() for host in hosts], timeout=args.patience):
            print(f"host: {name}", flush=True)
    except RayActorError as error:
        sys.exit(f"a host did not start: {str(error).partition('RuntimeError: ')[2] or error}")
    except GetTimeoutError:
        free = ray.available_resources()
        sys.exit(f"after {args.patience:.0f} s not every host runs: each needs {needs}, free in the cluster is {free}")
    return hosts


def main() -> None:
    args = parse_arguments()
    try:
        template, jobs = read_workflow(args.workflow), read_jobs(args)
        for job in jobs.values():
            customise(template, job)
    except (PromptError, ValueError, OSError) as error:
        sys.exit(str(error))
    if not jobs:
        sys.exit(f"nothing to do: {args.output} has every picture")
    hosts = start_hosts(args)
    start, saved, failed = time.monotonic(), 0, 0
    try:
        for index, name, result in render_all(hosts, template, jobs, args.patience):
            if isinstance(result, str):
                failed += 1
                print(f"{index:05}: {result}", file=sys.stderr, flush=True)
            else:
                saved += 1
                file = save(result, args.output / f"{index:05}.png")[0]
                print(f"{saved} of {len(jobs)}: {file} from {name}", flush=True)
    except TimeoutError:
        print(f"no answer for {3 * args.patience:.0f} s", file=sys.stderr, flush=True)
    finally:
        seconds = time.monotonic() - start
        ray.wait([host.stop.options(max_task_retries=0).remote() for host in hosts], num_returns=len(hosts), timeout=15)
    print(f"{saved} of {len(jobs)} prompts in {seconds:.1f} s, {saved / seconds:.2f} a second on {len(hosts)} hosts")
    if saved < len(jobs):
        sys.exit(f"{failed} failed, {len(jobs) - saved - failed} lost with their host: --resume makes what is missing")


if __name__ == "__main__":
    main()
