"""Every template and its API twin are the same graph."""

import json
from collections import defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from lcm_core.accelerators import recognize
from tools.templates import TEMPLATES as DESCRIBED
from tools.templates.models import MODELS

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


def loaded(template):
    """The files that a graph loads."""
    values = [value for node in template["nodes"] for value in node["widgets_values"] if isinstance(value, str)]
    return {value for value in values if value.endswith(".safetensors")}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_file_of_a_released_model_is_offered_where_it_is_loaded(path):
    """By the rules of the front end: it looks at files that a widget names, from these sites, of these kinds."""
    template = json.loads(path.read_text(encoding="utf-8"))
    offered = set()
    for node in template["nodes"]:
        for model in node["properties"].get("models", []):
            assert model.keys() == {"name", "url", "directory"} and model["name"] in node["widgets_values"]
            assert model["url"].startswith("https://huggingface.co/") and "/resolve/main/" in model["url"]
            assert model["url"].endswith(".safetensors")
            offered.add(model["name"])
    assert offered == loaded(template) != set()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_nothing_that_ships_needs_the_pocket_model(path):
    template = json.loads(path.read_text(encoding="utf-8"))
    assert "pocket" not in json.dumps([node["widgets_values"] for node in template["nodes"]]).lower()


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_every_node_names_its_pack(path):
    template = json.loads(path.read_text(encoding="utf-8"))
    packs = {node["type"]: node["properties"].get("cnr_id") for node in template["nodes"] if node["type"] not in NOTES}
    for kind, pack in packs.items():
        assert pack == ("lcm-lora" if kind.startswith("LCMLoRA_") else "comfy-core")


def test_addresses_are_those_of_the_hosts_own_templates():
    known = defaultdict(set)
    for package in ("media_image", "media_video", "media_other"):
        for file in files(f"comfyui_workflow_templates_{package}").joinpath("templates").iterdir():
            if file.name.endswith(".json"):
                collect(json.loads(file.read_text(encoding="utf-8")), known)
    both = MODELS.keys() & known.keys()
    assert len(both) > 10
    for name in both:
        assert (MODELS[name]["directory"], MODELS[name]["url"]) in known[name]


def collect(value, known):
    """Every `models` entry in nested JSON: name -> {(folder, address without its query)}."""
    if isinstance(value, dict):
        for model in value.get("models") or []:
            if isinstance(model, dict) and "url" in model:
                known[model["name"]].add((model.get("directory"), model["url"].partition("?")[0]))
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        collect(part, known)


LORAS = {
    "flux_turbo": ["flux-turbo-alpha"],
    "lcm_lora_sdxl": ["lcm-lora"],
    "lcm_lora_txt2img": ["lcm-lora"],
    "qwen_image_lightning": ["qwen-lightning"],
    "sdxl_lightning_hyper_dmd2": ["sdxl-lightning"],
    "wan22_lightning_video": ["wan22-lightning-high", "wan22-lightning-low"],
}


@pytest.mark.parametrize("name", LORAS)
def test_an_accelerators_name_finds_its_recipe_and_the_thumbnail_draws_it(name):
    graph = json.loads((WORKFLOWS / "api" / f"{name}.json").read_text(encoding="utf-8"))
    files = [node["inputs"]["lora_name"] for node in graph.values() if node["class_type"] == "LCMLoRA_Loader"]
    (template,) = [template for template in DESCRIBED if template.name == name]
    assert [recognize(file).recipe.name for file in files] == LORAS[name]
    assert not template.drawing or list(template.drawing.recipes) == LORAS[name]


def test_the_other_accelerators_of_sdxl_are_recognized_too():
    found = {name: recognize(name, base="SDXL").recipe for name in MODELS if "SDXL" in name or "dmd2" in name}
    assert {name: recipe.name for name, recipe in found.items()} == {
        "Hyper-SDXL-8steps-lora.safetensors": "hyper-sd",
        "dmd2_sdxl_4step_lora_fp16.safetensors": "dmd2",
    }
