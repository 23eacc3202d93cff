"""The templates on the pocket model, as a pack without nodes beside this one: what `run.py serve` adds to the browser.

python -m tools.pocket_templates URL FOLDER       URL is a running ComfyUI's, FOLDER the pack's folder `workflows`
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.comfy_client import Client
from tools.templates import ON_POCKET
from tools.templates.canvas import ui_format
from tools.templates.graph import Graph, slots

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"


def runs(graph: Graph, descriptions: Mapping[str, Any]) -> bool:
    """Whether the host has every choice of the graph, files among them."""
    return all(
        slot.choices is None or slot.value in slot.choices
        for node in graph.nodes
        for slot in slots(node, descriptions[node.type])
    )


def main(url: str, folder: Path) -> None:
    descriptions = Client(url).object_info()
    for old in folder.iterdir():
        old.unlink()
    for name, template in ON_POCKET.items():
        if runs(template.graph, descriptions):
            text = json.dumps(ui_format(template, descriptions), ensure_ascii=False, indent=1)
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
            shutil.copyfile(WORKFLOWS / f"{name}.jpg", folder / f"{name}.jpg")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
