"""Every template and its API twin are the same graph."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
TEMPLATES = sorted(WORKFLOWS.glob("*.json"))
NOTES = {"MarkdownNote", "Note"}
KEEP_THEIR_SEED = {"LCMLoRA_Distill", "LCMLoRA_Finetune", "LCMLoRA_Combine"}  # no "control after generate" beside it


def as_api(template):
    """The front end's graph as the server gets it: inputs by name, links as [node, slot], notes left out."""
    links = {link[0]: link for link in template["links"]}
    graph = {}
    for node in template["nodes"]:
        if node["type"] in NOTES:
            continue
        values, inputs = iter(node["widgets_values"]), {}
        for slot in node["inputs"]:
            if "widget" in slot:
                value = next(values)
                if slot["name"] != "upload":  # the front end's button, no input of the node
                    inputs[slot["name"]] = value
                if slot["name"] in ("seed", "noise_seed") and node["type"] not in KEEP_THEIR_SEED:
                    assert next(values) in ("fixed", "randomize", "increment", "decrement")
            if slot["link"] is not None:
                _, source, output, target, _, kind = links[slot["link"]]
                assert target == node["id"] and slot["type"] in (kind, "*")
                inputs[slot["name"]] = [str(source), output]
        assert list(values) == []
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def test_no_folder_hides_the_templates():
    """ComfyUI lists the templates of every such folder, but serves files of the first alone."""
    hiding = [name for name in ("example_workflows", "example", "examples", "workflow") if (ROOT / name).exists()]
    assert hiding == []


def test_there_are_templates():
    assert {path.stem for path in TEMPLATES} == {path.stem for path in (WORKFLOWS / "api").glob("*.json")} != set()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_is_its_api_twin(path):
    twin = json.loads((WORKFLOWS / "api" / path.name).read_text(encoding="utf-8"))
    for node in twin.values():
        node.pop("_meta")
    assert as_api(json.loads(path.read_text(encoding="utf-8"))) == twin


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template_has_a_note_and_consistent_links(path):
    template = json.loads(path.read_text(encoding="utf-8"))
    assert any(node["type"] in NOTES for node in template["nodes"])
    sources = {node["id"]: node.get("outputs", []) for node in template["nodes"]}
    for number, source, output, _, _, kind in template["links"]:
        slot = sources[source][output]
        assert number in slot["links"] and slot["type"] == kind
