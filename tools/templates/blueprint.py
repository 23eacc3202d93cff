"""A blueprint as the front end saves it: one node, and the definition of the subgraph that it stands for."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from .canvas import GAP, WIDTH, layout, numbered_links, record
from .graph import SLOT, WIDGET, Blueprint, Description, Node, Slot, slots

LEFT, RIGHT = -10, -20  # the front end's ids of a subgraph's own inputs and outputs
BORDER = 140  # width of the two


def blueprint_format(blueprint: Blueprint, descriptions: Mapping[str, Description]) -> dict[str, Any]:
    """A workflow of that node alone. The values of its widgets are those of the nodes in it."""
    nodes, links = blueprint.graph.nodes, numbered_links(blueprint.graph, descriptions)
    sockets, ends = [], []
    for i, (name, targets) in enumerate(blueprint.inputs.items()):
        first = len(links) + 1
        for node, its_name in targets:
            place, slot = found(node, its_name, descriptions)
            links.append([len(links) + 1, LEFT, i, node.id, place, slot.type])
        sockets.append((name, slot, list(range(first, len(links) + 1))))
    for i, (name, (node, output)) in enumerate(blueprint.outputs.items()):
        kind = descriptions[node.type]["output"][output]
        links.append([len(links) + 1, node.id, output, RIGHT, i, kind])
        ends.append((name, kind, [len(links)]))
    places, groups = layout(blueprint, descriptions)
    records = [record(node, descriptions[node.type], links, places[node.id]) for node in nodes]
    for order, node in enumerate(records):
        node["order"] = order
    definition = {
        "id": identity(blueprint.name),
        "version": 1,
        "revision": 0,
        "state": {
            "lastNodeId": len(nodes), "lastLinkId": len(links), "lastGroupId": len(groups), "lastRerouteId": 0,
        },
        "config": {},
        "name": blueprint.name,
        "inputNode": {"id": LEFT, "bounding": [-BORDER - GAP, 0, BORDER, SLOT * (len(sockets) + 2)]},
        "outputNode": {"id": RIGHT, "bounding": [right(groups) + GAP, 0, BORDER, SLOT * (len(ends) + 2)]},
        "inputs": [
            {"id": identity(blueprint.name, name), "name": name, "type": slot.type, "linkIds": numbers}
            for name, slot, numbers in sockets
        ],
        "outputs": [
            {"id": identity(blueprint.name, name), "name": name, "type": kind, "linkIds": numbers}
            for name, kind, numbers in ends
        ],
        "widgets": [],
        "nodes": records,
        "groups": groups,
        "links": [
            dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot", "type"), link, strict=True))
            for link in links
        ],
        "extra": {},
    }  # fmt: skip
    whole = {
        "id": 1, "type": definition["id"], "pos": [0, 0], "size": [WIDTH, 60 + WIDGET * (len(sockets) + len(ends))],
        "flags": {}, "order": 0, "mode": 0, "title": blueprint.name, "properties": {"cnr_id": "lcm-lora"},
        "inputs": [
            {"name": name, "type": slot.type, **({"widget": {"name": name}} if slot.widget else {}), "link": None}
            for name, slot, _ in sockets
        ],
        "outputs": [{"name": name, "type": kind, "links": None} for name, kind, _ in ends],
        "widgets_values": [],
    }  # fmt: skip
    return {
        "id": identity(blueprint.name, "workflow"), "revision": 0, "last_node_id": 1, "last_link_id": 0,
        "nodes": [whole], "links": [], "groups": [], "definitions": {"subgraphs": [definition]}, "config": {},
        "extra": {}, "version": 0.4,
    }  # fmt: skip


def found(node: Node, name: str, descriptions: Mapping[str, Description]) -> tuple[int, Slot]:
    """(place, slot) of a node's input of that name."""
    return next(pair for pair in enumerate(slots(node, descriptions[node.type])) if pair[1].name == name)


def right(groups: list[dict[str, Any]]) -> int:
    return max(group["bounding"][0] + group["bounding"][2] for group in groups)


def identity(*names: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, "/".join(names)))
