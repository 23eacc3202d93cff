"""A graph described once, and from it what ComfyUI's API takes; `canvas` makes what its front end saves.

    graph = Graph()
    model = graph.add("CheckpointLoaderSimple", ckpt_name="pocket.safetensors")
    graph.add("CLIPTextEncode", "Prompt", clip=model[1], text="cat")

`descriptions` is the server's /object_info: it has the nodes' inputs, their order, types and defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lcm_core.schedule import Flow, NoiseSchedule

WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
SLOT, WIDGET, TEXT = 20, 24, 90  # heights: a socket, a widget, a text of several lines
OPTIONAL = 7  # the front end's shape of a socket that may stay open

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
class Drawing:
    """A thumbnail that is drawn, of a graph whose models are too large to make a picture here.

    It shows two lines of text and the noise levels of a recipe on a model of this schedule. Of two recipes the second
    is that of the latter half of the steps.
    """

    title: str
    subtitle: str
    model: NoiseSchedule | Flow
    recipes: Sequence[str]


@dataclass(frozen=True)
class Template:
    """A graph with its place on the canvas.

    notes:      texts in Markdown, side by side above the graph, and their width in columns
    columns:    from left to right the groups of each, from top to bottom, as (title, nodes)
    network:    the network of tests/host/shrunken.py that tests run it on, where nothing of the pocket model can serve
    before:     the picture of workflows/inputs that the thumbnail shows beside the result
    drawing:    the thumbnail, in place of the result
    trains:     a training makes the pictures, so they are not the same on another CPU
    """

    name: str
    graph: Graph
    notes: Sequence[tuple[str, int]]
    columns: Sequence[Sequence[tuple[str, Sequence[Node]]]]
    network: str | None = None
    before: str | None = None
    drawing: Drawing | None = None
    trains: bool = False


@dataclass(frozen=True)
class Blueprint:
    """A graph that users add as one node.

    inputs:   name of an input of that node -> the inputs in the graph that get it
    outputs:  name of an output of that node -> the output in the graph that it is
    columns:  as a template's
    """

    name: str
    graph: Graph
    inputs: Mapping[str, Sequence[tuple[Node, str]]]
    outputs: Mapping[str, Output]
    columns: Sequence[Sequence[tuple[str, Sequence[Node]]]]


@dataclass(frozen=True)
class Slot:
    """An input as the front end has it. `value` is a widget's; `choices` those of a list of values, if it is one."""

    name: str
    type: str
    widget: bool
    optional: bool = False
    value: Any = None
    height: int = SLOT
    extra: Any = None
    choices: Sequence[Any] | None = None

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
            listed = choices if kind == "COMBO" else None
            found.append(Slot(name, kind, True, group == "optional", given, height, control, listed))
            if options.get("image_upload"):
                found.append(Slot("upload", "IMAGEUPLOAD", True, value="image", height=WIDGET))
    unknown = node.inputs.keys() - {slot.name for slot in found}
    if unknown:
        raise ValueError(f"{node.type} has no input {', '.join(sorted(unknown))}")
    return iter(sorted(found, key=lambda slot: slot.widget))


def title(node: Node, description: Description) -> str:
    return node.title or description["display_name"] or node.type


def api_format(template: Template | Blueprint, descriptions: Mapping[str, Description]) -> dict[str, Any]:
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
