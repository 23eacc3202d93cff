"""One real ComfyUI process for the host tests and the browser tests."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocket.assemble import full_lcm, write_sparse
from tools.comfy_client import Client
from tools.host_process import HostProcess
from tools.templates.accelerators import HYPER
from tools.templates.common import LCM

SETTINGS = ("LCM_HOST_DIR", "LCM_HOST_PYTHON", "LCM_HOST_BASE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses the session's host runs in one process."""
    for item in items:
        if "host" in getattr(item, "fixturenames", ()):
            item.add_marker("alone")


@pytest.fixture(scope="session")
def base() -> Path:
    """The host's base directory."""
    missing = [name for name in SETTINGS if name not in os.environ]
    if missing:
        pytest.fail(f"{', '.join(missing)} not set: run the host tests with `python tools/run.py test`", pytrace=False)
    return Path(os.environ["LCM_HOST_BASE"])


@pytest.fixture(scope="session")
def host(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a ComfyUI process that lives as long as the session and writes into a temporary folder."""
    folder = tmp_path_factory.mktemp("host")
    arguments = ["--preview-method", "latent2rgb", *shlex.split(os.environ.get("LCM_HOST_ARGS", ""))]
    for name in ("output", "temp", "user"):
        (folder / name).mkdir()
        arguments += [f"--{name}-directory", str(folder / name)]
    arguments += ["--database-url", f"sqlite:///{folder.as_posix()}/comfyui.db"]
    comfyui, python = Path(os.environ["LCM_HOST_DIR"]), os.environ["LCM_HOST_PYTHON"]
    with HostProcess(comfyui, python, base, base.parent / "logs" / "test.log", arguments) as process:
        process.wait_ready()
        yield Client(process.url)


@pytest.fixture(scope="module")
def stand_in(base: Path) -> Iterator[None]:
    """What templates' stand-ins name beside the pocket model: a small full LCM, and its LCM-LoRA as one of Hyper-SD."""
    full = base / "models" / "diffusion_models" / "test_full_lcm.safetensors"
    full.parent.mkdir(exist_ok=True)
    write_sparse(full, full_lcm())
    loras = base / "models" / "loras"
    shutil.copyfile(loras / LCM, loras / HYPER)
    yield
    full.unlink()
    (loras / HYPER).unlink()
