"""A graph described once, and from it the two formats of ComfyUI: the API's, and the front end's with a layout.

    graph = Graph()
    model = graph.add("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
    graph.add("CLIPTextEncode", "Prompt", clip=model[1], text="cat")

`descriptions` is the server's /object_info: it has the nodes' inputs, their order, types and defaults.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
WIDTH, GAP, TITLE, MARGIN = 310, 70, 30, 20  # of a node, between columns, a title bar, inside a group
SLOT, WIDGET, TEXT = 20, 24, 90  # heights: a socket, a widget, a text of several lines
OPTIONAL, LIST = 7, 6  # the front end's shapes of sockets
# Heights of what a node shows once it has run: inside it, and below it in its group.
INSIDE = {
    "SaveImage": 260, "LoadImage": 260, "PreviewImage": 260, "SaveAnimatedWEBP": 260, "PreviewAny": 120,
    "LCMLoRA_Inspect": 230, "LCMLoRA_SaveVector": 70, "LCMLoRA_Loader": 124, "LCMLoRA_ApplyVector": 62,
    "LCMLoRA_Sampler": 84, "LCMLoRA_StreamBatch": 84,
}  # fmt: skip
BELOW = {"LCMLoRA_Sampler": 230, "LCMLoRA_StreamBatch": 230, "LCMLoRA_Distill": 230}
COLOURS = {
    "Model": "#3f789e", "LoRA vectors": "#b06634", "Prompt": "#8A8", "Picture": "#88A", "Sampling": "#b58b2a",
    "Result": "#8AA",
}  # fmt: skip

Description = Mapping[str, Any]
Output = tuple["Node", int]


@dataclass(frozen=True, eq=False)
class Node:
    """inputs: name -> a value, a node (its first output) or `node[i]`. What is not given has the node's default."""

    id: int
    type: str
    title: str | None
    inputs: Mapping[str, Any]

    def __getitem__(self, slot: int) -> Output:
        return self, slot

    def links(self) -> dict[str, Output]:
        return {
            name: value if isinstance(value, tuple) else value[0]
            for name, value in self.inputs.items()
            if isinstance(value, (Node, tuple))
        }


@dataclass
class Graph:
    nodes: list[Node] = field(default_factory=list)

    def add(self, node_type: str, title: str | None = None, **inputs: Any) -> Node:
        self.nodes.append(Node(len(self.nodes) + 1, node_type, title, inputs))
        return self.nodes[-1]


@dataclass(frozen=True)
class Template:
    """A graph with its place on the canvas.

    notes:      texts in Markdown, side by side above the graph, and their width in columns
    columns:    from left to right the groups of each, from top to bottom, as (title, nodes)
    stand_ins:  what the tests put in place of values that the pocket model can't serve
    before:     the picture of workflows/inputs that the thumbnail shows beside the result
    trains:     a training makes the pictures, so they are not the same on another CPU
    """

    name: str
    graph: Graph
    notes: Sequence[tuple[str, int]]
    columns: Sequence[Sequence[tuple[str, Sequence[Node]]]]
    stand_ins: Mapping[str | int, str | int] = field(default_factory=dict)
    before: str | None = None
    trains: bool = False


@dataclass(frozen=True)
class Slot:
    """An input as the front end has it. `value` is a widget's."""

    name: str
    type: str
    widget: bool
    optional: bool = False
    value: Any = None
    height: int = SLOT
    extra: Any = None

    def as_input(self, link: int | None) -> dict[str, Any]:
        shape = {"shape": OPTIONAL} if self.optional else {}
        widget = {"widget": {"name": self.name}} if self.widget else {}
        return {"name": self.name, "type": self.type, **shape, **widget, "link": link}


def slots(node: Node, description: Description) -> Iterator[Slot]:
    """The node's inputs in the front end's order: sockets, then widgets."""
    found = []
    for group in ("required", "optional"):
        for name, (kind, *more) in description["input"].get(group, {}).items():
            options = more[0] if more else {}
            choices = kind if isinstance(kind, list) else options.get("options", [None])
            kind = "COMBO" if isinstance(kind, list) else kind
            if kind not in WIDGETS or options.get("forceInput"):
                found.append(Slot(name, kind, False, group == "optional"))
                continue
            given = node.inputs.get(name)
            if given is None or name in node.links():
                given = options.get("default", choices[0])
            height = TEXT if options.get("multiline") else WIDGET
            control = "fixed" if options.get("control_after_generate") else None
            found.append(Slot(name, kind, True, group == "optional", given, height, control))
            if options.get("image_upload"):
                found.append(Slot("upload", "IMAGEUPLOAD", True, value="image", height=WIDGET))
    unknown = node.inputs.keys() - {slot.name for slot in found}
    if unknown:
        raise ValueError(f"{node.type} has no input {', '.join(sorted(unknown))}")
    return iter(sorted(found, key=lambda slot: slot.widget))


def height(node: Node, description: Description) -> int:
    found = list(slots(node, description))
    sockets = max(sum(not slot.widget for slot in found), len(description["output"]), 1)
    widgets = sum(slot.height + WIDGET * (slot.extra is not None) for slot in found if slot.widget)
    return sockets * SLOT + widgets + 16 + INSIDE.get(node.type, 0)


def title(node: Node, description: Description) -> str:
    return node.title or description["display_name"] or node.type


def api_format(template: Template, descriptions: Mapping[str, Description]) -> dict[str, Any]:
    """The graph as POST /prompt takes it."""
    graph = {}
    for node in template.graph.nodes:
        description, links = descriptions[node.type], node.links()
        inputs: dict[str, Any] = {}
        for slot in slots(node, description):
            if slot.name in links:
                source, output = links[slot.name]
                inputs[slot.name] = [str(source.id), output]
            elif slot.widget and slot.type != "IMAGEUPLOAD":
                inputs[slot.name] = slot.value
        meta = {"title": title(node, description)}
        graph[str(node.id)] = {"class_type": node.type, "inputs": inputs, "_meta": meta}
    return graph


def with_stand_ins(graph: Mapping[str, Any], stand_ins: Mapping[str | int, str | int]) -> dict[str, Any]:
    """An API graph with these values in place of those."""
    return {
        key: {**node, "inputs": {name: value if isinstance(value, list) else stand_ins.get(value, value)
                                 for name, value in node["inputs"].items()}}
        for key, node in graph.items()
    }  # fmt: skip


def ui_format(template: Template, descriptions: Mapping[str, Description]) -> dict[str, Any]:
    """The graph as the front end saves it, laid out in columns of groups, each a box around its nodes."""
    nodes, links = template.graph.nodes, numbered_links(template.graph, descriptions)
    places, groups = layout(template, descriptions)
    records = [record(node, descriptions[node.type], links, places[node.id]) for node in nodes]
    records += notes(template, len(nodes))
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


def layout(
    template: Template, descriptions: Mapping[str, Description]
) -> tuple[dict[int, tuple[list[int], list[int]]], list[dict[str, Any]]]:
    """(id -> position and size of each node, the groups' boxes)."""
    places, groups = {}, []
    for column, boxes in enumerate(template.columns):
        x, y = column * (WIDTH + GAP), 0
        for name, nodes in boxes:
            top = y
            y += 44
            for node in nodes:
                size = [WIDTH, height(node, descriptions[node.type])]
                places[node.id] = [x, y + TITLE], size
                y += TITLE + size[1] + BELOW.get(node.type, 0) + MARGIN
            box = [x - MARGIN, top, WIDTH + 2 * MARGIN, y - top]
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
        "properties": {"Node name for S&R": node.type},
        "widgets_values": values,
    }


def notes(template: Template, count: int) -> list[dict[str, Any]]:
    """The notes' nodes, in a row above the graph; a paragraph's lines become one."""
    records, x = [], 0
    sizes = [(columns * (WIDTH + GAP) - GAP, re.sub(r"(?<!\n)\n(?!\n)", " ", text)) for text, columns in template.notes]
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
    paragraphs = [1 + int(len(paragraph) * 5 / (width - 30)) for paragraph in text.split("\n\n")]
    return 40 + sum(12 + 13 * lines for lines in paragraphs)
