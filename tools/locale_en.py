"""Writes locales/en/nodeDefs.json, the English that translators start from, from the nodes' own texts.

python tools/locale_en.py COMFYUI BASE

Only the tooltips of outputs are the file's own: they are kept, and a new output's is left empty to be written there.
Inputs that grow are left out, as only newer hosts have them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent))

from tools.inprocess import ROOT, load_host_of_arguments  # noqa: E402

FILE = ROOT / "locales" / "en" / "nodeDefs.json"


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


def main() -> None:
    nodes = load_host_of_arguments(__doc__).own_nodes()
    known = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    FILE.write_text(json.dumps(english(nodes, known), ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
