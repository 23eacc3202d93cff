"""A template as the front end saves it: columns of groups of nodes, with notes above them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from .graph import SLOT, WIDGET, Blueprint, Description, Graph, Node, Template, slots, title
from .models import MODELS

WIDTH, GAP, TITLE, MARGIN = 310, 70, 30, 20  # of a node, between columns, a title bar, inside a group
LETTER, FRAME = 7, 90  # width of a file's name in a widget: a letter, and what is around it
LIST = 6  # the front end's shape of a socket that gives a list
# Heights of what a node shows once it has run: inside it, and below it in its group.
INSIDE = {
    "SaveImage": 260, "LoadImage": 260, "PreviewImage": 260, "SaveAnimatedWEBP": 260, "SaveVideo": 260,
    "PreviewAny": 120, "LCMLoRA_Inspect": 300, "LCMLoRA_SaveVector": 70, "LCMLoRA_Loader": 124,
    "LCMLoRA_ApplyVector": 62, "LCMLoRA_Sampler": 84, "LCMLoRA_StreamBatch": 84,
}  # fmt: skip
BELOW = {"LCMLoRA_Sampler": 230, "LCMLoRA_StreamBatch": 230, "LCMLoRA_Distill": 230}
COLOURS = {
    "Model": "#3f789e", "LoRA vectors": "#b06634", "Prompt": "#8A8", "Picture": "#88A", "Sampling": "#b58b2a",
    "Result": "#8AA",
}  # fmt: skip


def height(node: Node, description: Description) -> int:
    found = list(slots(node, description))
    sockets = max(sum(not slot.widget for slot in found), len(description["output"]), 1)
    widgets = sum(slot.height + WIDGET * (slot.extra is not None) for slot in found if slot.widget)
    return sockets * SLOT + widgets + 16 + INSIDE.get(node.type, 0)


def ui_format(template: Template, descriptions: Mapping[str, Description]) -> dict[str, Any]:
    """The graph as the front end saves it, laid out in columns of groups, each a box around its nodes."""
    nodes, links = template.graph.nodes, numbered_links(template.graph, descriptions)
    places, groups = layout(template, descriptions)
    records = [record(node, descriptions[node.type], links, places[node.id]) for node in nodes]
    records += notes(template, len(nodes), widths(template, descriptions))
    for order, node in enumerate(records):
        node["order"] = order
    return {
        "id": str(uuid.uuid5(uuid.NAMESPACE_DNS, template.name)),
        "revision": 0,
        "last_node_id": len(records),
        "last_link_id": len(links),
        "nodes": records,
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def numbered_links(graph: Graph, descriptions: Mapping[str, Description]) -> list[list[Any]]:
    """[number, source, its output, target, its input, type] of every link."""
    links: list[list[Any]] = []
    for node in graph.nodes:
        sources = node.links()
        for place, slot in enumerate(slots(node, descriptions[node.type])):
            if slot.name in sources:
                source, output = sources[slot.name]
                kind = descriptions[source.type]["output"][output]
                links.append([len(links) + 1, source.id, output, node.id, place, kind])
    return links


def widths(template: Template | Blueprint, descriptions: Mapping[str, Description]) -> list[int]:
    """Of each column the width in which the names of files in its nodes are not cut."""
    found = []
    for boxes in template.columns:
        nodes = [node for _, nodes in boxes for node in nodes]
        letters = [
            len(f"{slot.name}{slot.value}")
            for node in nodes for slot in slots(node, descriptions[node.type]) if slot.type == "COMBO"
        ]  # fmt: skip
        found.append(max(WIDTH, FRAME + LETTER * max(letters, default=0)))
    return found


def layout(
    template: Template | Blueprint, descriptions: Mapping[str, Description]
) -> tuple[dict[int, tuple[list[int], list[int]]], list[dict[str, Any]]]:
    """(id -> position and size of each node, the groups' boxes)."""
    places, groups, right = {}, [], 0
    for boxes, width in zip(template.columns, widths(template, descriptions), strict=True):
        x, y, right = right, 0, right + width + GAP
        for name, nodes in boxes:
            top = y
            y += 44
            for node in nodes:
                size = [width, height(node, descriptions[node.type])]
                places[node.id] = [x, y + TITLE], size
                y += TITLE + size[1] + BELOW.get(node.type, 0) + MARGIN
            box = [x - MARGIN, top, width + 2 * MARGIN, y - top]
            colour = COLOURS[name.partition(":")[0]]
            groups.append({
                "id": len(groups) + 1, "title": name, "bounding": box, "color": colour, "font_size": 22, "flags": {},
            })  # fmt: skip
            y += MARGIN
    return places, groups


def record(
    node: Node, description: Description, links: Sequence[Sequence[Any]], place: tuple[list[int], list[int]]
) -> dict[str, Any]:
    found = list(slots(node, description))
    incoming = {link[4]: link[0] for link in links if link[3] == node.id}
    outputs = []
    for i, (name, kind) in enumerate(zip(description["output_name"], description["output"], strict=True)):
        shape = {"shape": LIST} if description["output_is_list"][i] else {}
        outgoing = [link[0] for link in links if link[1:3] == [node.id, i]]
        outputs.append({"name": name, "type": kind, **shape, "links": outgoing or None})
    values = [value for slot in found if slot.widget for value in (slot.value, slot.extra)[: 1 + bool(slot.extra)]]
    models = [MODELS[value] for value in values if value in MODELS]
    return {
        "id": node.id,
        "type": node.type,
        "pos": place[0],
        "size": place[1],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [slot.as_input(incoming.get(i)) for i, slot in enumerate(found)],
        "outputs": outputs,
        "title": title(node, description),
        "properties": {
            "Node name for S&R": node.type,
            "cnr_id": "lcm-lora" if description["python_module"].startswith("custom_nodes") else "comfy-core",
            **({"models": models} if models else {}),
        },
        "widgets_values": values,
    }


def notes(template: Template, count: int, widths: Sequence[int]) -> list[dict[str, Any]]:
    """The notes' nodes, in a row above the graph's columns; a paragraph's lines become one."""
    records, x, below, sizes = [], 0, iter(widths), []
    for text, columns in template.notes:
        width = sum(next(below) + GAP for _ in range(columns)) - GAP
        sizes.append((width, re.sub(r"(?<!\n)\n(?![\n-])", " ", text)))
    tall = max(note_height(text, width) for width, text in sizes)
    for number, (width, text) in enumerate(sizes, count + 1):
        records.append({
            "id": number, "type": "MarkdownNote", "pos": [x, -tall - 2 * MARGIN], "size": [width, tall], "flags": {},
            "order": 0, "mode": 0, "inputs": [], "outputs": [], "title": "Note", "properties": {},
            "widgets_values": [text], "color": "#432", "bgcolor": "#653",
        })  # fmt: skip
        x += width + GAP
    return records


def note_height(text: str, width: int) -> int:
    """Enough for the text as the front end draws it, about 5 × 11 pixels a letter, and a third more for wider fonts."""
    seen = re.sub(r"\]\([^)]*\)", "]", text)
    paragraphs = [1 + int(len(paragraph) * 5 / (width - 30)) for paragraph in re.split(r"\n\n|\n(?=-)", seen)]
    return 40 + sum(12 + 13 * lines for lines in paragraphs)
