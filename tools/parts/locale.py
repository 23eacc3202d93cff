"""locales/en/nodeDefs.json: the English that translators start from, from the nodes' own texts.

Only the tooltips of outputs are the file's own: they are kept, and a new output's is left empty to be written there.
Inputs that grow are left out, as only newer hosts have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tools.workshop import ROOT, Product, Workshop

FILE = ROOT / "locales" / "en" / "nodeDefs.json"


def products(workshop: Workshop) -> Iterator[Product]:
    def written() -> str:
        known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
        return json.dumps(english(workshop.host.own_nodes(), known), ensure_ascii=False, indent=2) + "\n"

    yield Product.text(FILE, written)


def english(nodes: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The translation file of nodes as /object_info describes them, with the outputs' tooltips of the file `known`."""
    return {key: entry(node, known.get(key, {}).get("outputs", {})) for key, node in sorted(nodes.items())}


def entry(node: Mapping[str, Any], outputs: Mapping[str, Any]) -> dict[str, Any]:
    both = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    inputs = {name: spec for name, spec in both.items() if spec[0] != "COMFY_AUTOGROW_V3"}
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": {name: {"name": name, "tooltip": spec[1]["tooltip"]} for name, spec in inputs.items()},
        "outputs": {
            str(i): {"name": name, "tooltip": outputs.get(str(i), {}).get("tooltip", "")}
            for i, name in enumerate(node["output_name"])
        },
    }