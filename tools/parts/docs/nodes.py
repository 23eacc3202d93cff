"""docs/nodes.md: every node by category, with what it does, from the nodes' schemas and their help pages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from tools.workshop import ROOT, Product, Workshop

FILE = ROOT / "docs" / "nodes.md"
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
GROWING = "COMFY_AUTOGROW_V3"  # inputs that newer hosts alone have
OPENING = """# Nodes

{count} nodes, in the menu under *Add Node → LCM-LoRA*. A node's name leads to its help page, which is also behind its
*?* in ComfyUI. The last column is what is linked to it (in parentheses: may be left open) and what it gives.
Written by `tools/make.py docs.nodes`.
"""


def products(workshop: Workshop) -> Iterator[Product]:
    yield Product.text(FILE, lambda: page(workshop.host.own_nodes()))


def page(nodes: Mapping[str, Any]) -> str:
    """docs/nodes.md of nodes as /object_info describes them, in their order."""
    lines = [OPENING.format(count=len(nodes))]
    for category, group in groupby(nodes.items(), key=lambda item: item[1]["category"]):
        lines += [f"## {category}", "", "| node | id | what it does | links |", "|---|---|---|---|"]
        lines += [*(row(*item) for item in group), ""]
    return "\n".join(lines)


def row(node_id: str, node: Mapping[str, Any]) -> str:
    help_page = (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    about = re.match(r".{1,170}\.(?=\s|$)|.+", help_page.split("\n\n")[1])[0]
    linked = [
        name if kind == "required" else f"({name})"
        for kind in ("required", "optional")
        for name, spec in node["input"].get(kind, {}).items()
        if isinstance(spec[0], str) and spec[0] not in (*WIDGETS, GROWING)
    ]
    links = f"{', '.join(linked) or 'none'} → {', '.join(node['output_name']) or 'a file'}"
    return f"| [{node['display_name']}](../web/docs/{node_id}.md) | `{node_id}` | {about} | {links} |"