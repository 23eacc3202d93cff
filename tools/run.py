"""From a fresh clone to pictures, tests or a running ComfyUI, with one command. Needs Python >= 3.10 alone.

python tools/run.py demo                 few-step pictures through a real ComfyUI, a contact sheet and a table
python tools/run.py test [pytest args]   ruff, mypy and the tests; installs Chromium for tests/browser if it is missing
python tools/run.py serve                ComfyUI with these nodes and the pocket model, for a browser
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from host_process import HostError, HostProcess, clean_environment, device_arguments
from setup_env import (
    BASE,
    COMFYUI,
    POCKET_PACK,
    ROOT,
    WORK,
    StepError,
    ensure_base,
    ensure_chromium,
    ensure_comfyui,
    ensure_venv,
    run_step,
    user_python,
    venv_python,
)

# Files side by side, but what shares one host or measures the machine; each process on one core.
SIDE_BY_SIDE = ["-m", "not alone", "-n", "logical", "--maxprocesses", "4", "--dist", "loadfile"]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
NOTHING_RAN = 5  # pytest's exit status where the arguments leave no test


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in [
        ("demo", "write few-step pictures and a contact sheet into output/demo/ and print the table"),
        ("test", "check style and types and run the tests; what is not an option here goes to pytest"),
        ("serve", "run ComfyUI with these nodes and the pocket model until Ctrl-C"),
    ]:
        command = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        command.add_argument(
            "--comfyui",
            type=Path,
            metavar="DIR",
            help="your own ComfyUI (the folder with main.py) in place of ours. It runs on .host/base, a folder with "
            "our models and only these nodes: your models, custom nodes, settings and outputs are not used or touched",
        )
        command.add_argument(
            "--python",
            metavar="EXE",
            help="the Python that runs --comfyui (default: its .venv or venv, the portable build's, else this one)",
        )
        command.add_argument(
            "--host-args",
            default="",
            metavar="ARGS",
            help="more arguments for ComfyUI's main.py, in one string; with --comfyui they also replace the --cpu that "
            "is added where torch finds no GPU",
        )
        if name == "demo":
            command.add_argument("--prompts", type=int, choices=range(1, 7), default=4, help="columns (default 4)")
        if name == "serve":
            command.add_argument("--port", type=int, help="the port on 127.0.0.1 (default: a free one)")
    arguments, rest = parser.parse_known_args()
    if rest and arguments.command != "test":
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if arguments.python and not arguments.comfyui:
        parser.error("--python names the Python of your own ComfyUI: give --comfyui DIR too")
    if arguments.comfyui and not (arguments.comfyui / "main.py").is_file():
        parser.error(f"--comfyui {arguments.comfyui}: no main.py there; give ComfyUI's own folder")
    arguments.pytest = rest
    return arguments


def replace_by(command: list[str], extra: dict[str, str]) -> NoReturn:
    """Become `command`, so that Ctrl-C and exit codes are its own."""
    sys.stdout.flush()
    environment = clean_environment() | extra
    os.chdir(ROOT)
    if os.name != "nt":
        os.execve(command[0], command, environment)
    process = subprocess.Popen(command, env=environment)
    while True:
        try:
            raise SystemExit(process.wait())
        except KeyboardInterrupt:
            continue


def check(title: str, command: list[str]) -> None:
    print(f"- {title}", flush=True)
    if subprocess.run(command, cwd=ROOT, env=clean_environment()).returncode:
        raise StepError(f"This step failed: {title}. What to do: mend what it names above, then run the same again.")


def test(arguments: list[str], host: dict[str, str]) -> NoReturn:
    whole = not any((ROOT / argument.split("::")[0]).exists() for argument in arguments)
    if whole:
        arguments = [*arguments, "tests/unit", "tests/host", "tests/browser"]
    if any("tests/browser" in argument for argument in arguments):
        ensure_chromium()
    python = venv_python()
    check("ruff check .", [python, "-m", "ruff", "check", "."])
    check("mypy lcm_core", [python, "-m", "mypy"])
    command = [python, "-m", "pytest", "-c", "tests/pytest.ini", "--rootdir", "tests", *arguments]
    if whole and not any(argument.startswith("-m") for argument in arguments):
        codes = []
        for parts, threads in ((SIDE_BY_SIDE, ONE_THREAD), (["-m", "alone"], {})):
            print(f"- pytest {' '.join([*command[3:], *parts])}", flush=True)
            run = subprocess.run([*command, *parts], cwd=ROOT, env=clean_environment() | host | threads)
            codes.append(run.returncode)
        failed = [code for code in codes if code not in (0, NOTHING_RAN)]
        raise SystemExit(failed[0] if failed else min(codes))
    print(f"- pytest {' '.join(command[3:])}", flush=True)
    replace_by(command, host)


def serve(comfyui: Path, python: str, host_arguments: list[str], port: int | None) -> None:
    log = WORK / "logs" / "serve.log"
    print("- start ComfyUI", flush=True)
    with HostProcess(comfyui, python, BASE, log, host_arguments, port=port) as host:
        version = host.wait_ready()["system"].get("comfyui_version", "")
        run_step(
            "write the templates on the pocket model",
            [python, "-m", "tools.pocket_templates", host.url, str(POCKET_PACK / "workflows")],
            "read the log, then run the same command again",
        )
        print(f"\nComfyUI {version} is ready: {host.url}\nIts log: {log}")
        print("Templates on the pocket model: Templates → Extensions → pocket-model. Ctrl-C stops it.", flush=True)
        try:
            host.process.wait()
            host.check_alive()
        except KeyboardInterrupt:
            print("\nStopping")


def main() -> None:
    arguments = parse_arguments()
    extra = shlex.split(arguments.host_args, posix=os.name != "nt")
    own = arguments.comfyui is None
    if own or arguments.command == "test":
        ensure_venv()
    if own:
        ensure_comfyui()
        comfyui, python = COMFYUI, venv_python()
        extra = ["--cpu", *extra]
    else:
        comfyui = arguments.comfyui.resolve()
        python = arguments.python or user_python(comfyui)
        extra = extra or device_arguments(python)
    ensure_base(python, comfyui)
    if arguments.command == "serve":
        serve(comfyui, python, extra, arguments.port)
        return
    host = {
        "LCM_HOST_DIR": str(comfyui),
        "LCM_HOST_PYTHON": python,
        "LCM_HOST_BASE": str(BASE),
        "LCM_HOST_ARGS": shlex.join(extra),
    }
    if arguments.command == "test":
        test(arguments.pytest, host)
    replace_by([python, str(ROOT / "tools" / "demo.py")], host | {"LCM_DEMO_PROMPTS": str(arguments.prompts)})


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")
    try:
        main()
    except (StepError, HostError) as error:
        raise SystemExit(str(error)) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
