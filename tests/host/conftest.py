"""One real ComfyUI process for all host tests, and the graphs that they share."""

from __future__ import annotations

import copy
import json
import os
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tools.comfy_client import Client, Graph, cached_nodes
from tools.host_process import HostProcess

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("LCM_HOST_DIR", "LCM_HOST_PYTHON", "LCM_HOST_BASE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-pictures", action="store_true", help="store the workflows' pictures as the references")


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


@pytest.fixture(scope="session")
def workflow() -> Callable[[str], Graph]:
    """workflow(name): a fresh copy of the graph in workflows/api/<name>.json."""

    def load(name: str) -> Graph:
        return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))

    return load


def sampler_ids(graph: Graph) -> list[str]:
    """The nodes that sample: they have a seed and a positive conditioning."""
    return [key for key, node in graph.items() if {"seed", "positive"} <= node["inputs"].keys()]


@pytest.fixture(scope="session")
def sample(host: Client) -> Callable[[Graph], list[np.ndarray]]:
    """sample(graph): the pictures of a run in which every sampler really ran.

    The server keeps the outputs of the last run only, so a run with other seeds in between makes it sample again.
    """

    def run(graph: Graph) -> list[np.ndarray]:
        samplers = sampler_ids(graph)
        assert samplers, "the graph has no sampler"
        other = copy.deepcopy(graph)
        for key in samplers:
            other[key]["inputs"]["seed"] += 1
        host.queue(other)
        entry = host.queue(graph)
        assert not cached_nodes(entry) & set(samplers)
        return host.images(entry)

    return run
