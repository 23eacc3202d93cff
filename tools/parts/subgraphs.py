"""subgraphs/*.json: the blueprints, from tools/templates/blueprints.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.templates.blueprint import blueprint_format
from tools.templates.blueprints import BLUEPRINTS
from tools.templates.common import for_released
from tools.workshop import ROOT, Product, Workshop

FOLDER = ROOT / "subgraphs"


def products(workshop: Workshop) -> Iterator[Product]:
    for path, text in files(workshop.client.object_info()).items():
        yield Product.text(path, lambda text=text: text)


def files(descriptions: Mapping[str, Any]) -> dict[Path, str]:
    """path -> text of each. ASCII alone: hosts before 0.15 read them in the encoding of their system."""
    blueprints = [describe(for_released) for describe in BLUEPRINTS]
    return {
        FOLDER / f"{blueprint.name}.json": json.dumps(blueprint_format(blueprint, descriptions), indent=1) + "\n"
        for blueprint in blueprints
    }
