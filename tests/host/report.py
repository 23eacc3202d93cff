"""What a module of these tests finds out in a process of its own, which has the host in it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tools.host_process import clean_environment

ROOT = Path(__file__).resolve().parents[2]


def report_of(module: str, folder: str, *arguments: str, timeout: float = 1200) -> dict[str, Any]:
    """FOLDER/report.json after `python -m tests.host.MODULE COMFYUI FOLDER ARGUMENT …` in the host's Python."""
    command = [os.environ["LCM_HOST_PYTHON"], "-m", f"tests.host.{module}", os.environ["LCM_HOST_DIR"], folder]
    command += arguments
    run = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(Path(folder, "report.json").read_text(encoding="utf-8"))


def facts_of(base: Path, *target: str) -> dict[str, Any]:
    """The JSON that the host's Python prints last of `TARGET COMFYUI BASE`, a script's path or `-m` and a module."""
    command = [os.environ["LCM_HOST_PYTHON"], *target, os.environ["LCM_HOST_DIR"], str(base)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])
