"""The graphs that the host tests share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tools.comfy_client import Client, Graph, cached_nodes
from tools.templates import ON_POCKET
from tools.templates.graph import api_format


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--store-pictures", action="store_true", help="store the workflows' pictures as the references")


@pytest.fixture(scope="session")
def workflow(host: Client) -> Callable[[str], Graph]:
    """workflow(name): a fresh copy of a template's graph on the pocket model."""
    descriptions = host.object_info()
    return lambda name: api_format(ON_POCKET[name], descriptions)


def sampler_ids(graph: Graph) -> list[str]:
    """The nodes that sample: they have a seed and a positive conditioning."""
    return [key for key, node in graph.items() if {"seed", "positive"} <= node["inputs"].keys()]


@pytest.fixture(scope="session")
def sample(host: Client) -> Callable[[Graph], list[np.ndarray]]:
    """sample(graph): the pictures of a run in which every sampler that it has really ran.

    The server keeps the outputs of the last run only, so a run of another graph in between makes it sample again.
    """
    other = {
        "image": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "preview": {"class_type": "PreviewImage", "inputs": {"images": ["image", 0]}},
    }

    def run(graph: Graph) -> list[np.ndarray]:
        samplers = sampler_ids(graph)
        host.queue(other)
        entry = host.queue(graph)
        assert not cached_nodes(entry) & set(samplers)
        return host.images(entry)

    return run
