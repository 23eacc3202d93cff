"""workflows/*.json, their API twins and thumbnails: the templates, from tools/templates.

A thumbnail is made from the template's stored result in tests/host/pictures, or drawn where the template has a drawing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tools.scene import encoded
from tools.templates import TEMPLATES
from tools.templates.canvas import ui_format
from tools.templates.graph import Template, api_format
from tools.templates.thumbnail import thumbnail
from tools.workshop import ROOT, Product, Workshop

FOLDER = ROOT / "workflows"


def products(workshop: Workshop) -> Iterator[Product]:
    descriptions = workshop.client.object_info()
    for template in TEMPLATES:
        for path, text in files(template, descriptions).items():
            yield Product.text(path, lambda text=text: text)
    for template in TEMPLATES:
        yield Product(
            FOLDER / f"{template.name}.jpg",
            lambda template=template: encoded(thumbnail(template), "JPEG", quality=85),
        )


def files(template: Template, descriptions: Mapping[str, Any]) -> dict[Path, str]:
    """path -> text of a template and its twin."""
    graph = json.dumps(ui_format(template, descriptions), ensure_ascii=False, indent=1)
    twin = json.dumps(api_format(template, descriptions), ensure_ascii=False, indent=2)
    name = f"{template.name}.json"
    return {FOLDER / name: f"{graph}\n", FOLDER / "api" / name: f"{twin}\n"}
