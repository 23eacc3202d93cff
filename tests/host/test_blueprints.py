"""The blueprints of subgraphs/ in a real host: listed, and each run on the pocket model; test_front_end adds them."""

from __future__ import annotations

import json

import pytest

from tools.parts import subgraphs
from tools.templates.blueprints import BLUEPRINTS
from tools.templates.common import POCKET, SIZE, for_pocket
from tools.templates.graph import api_format

POCKET_BLUEPRINTS = {blueprint.name: blueprint for blueprint in (describe(for_pocket) for describe in BLUEPRINTS)}


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def placed(name, descriptions, **given):
    """(a blueprint's graph on the pocket model with these values and links in its own inputs, its outputs as links)"""
    blueprint = POCKET_BLUEPRINTS[name]
    graph = api_format(blueprint, descriptions)
    for own, value in given.items():
        for target, its_name in blueprint.inputs[own]:
            graph[str(target.id)]["inputs"][its_name] = value
    return graph, {own: [str(source.id), output] for own, (source, output) in blueprint.outputs.items()}


@pytest.fixture(scope="module")
def descriptions(host):
    return host.object_info()


def test_the_host_lists_them_and_gives_what_is_in_the_folder(host):
    listed = json.loads(host.get("/global_subgraphs"))
    own = {entry["name"]: key for key, entry in listed.items() if entry["info"]["node_pack"] == "custom_nodes.lcm-lora"}
    assert own.keys() == POCKET_BLUEPRINTS.keys() == {path.stem for path in subgraphs.FOLDER.glob("*.json")}
    for name, key in own.items():
        data = json.loads(host.get(f"/global_subgraphs/{key}"))["data"]
        assert data == (subgraphs.FOLDER / f"{name}.json").read_text(encoding="ascii")


def test_every_open_input_is_one_of_the_blueprint(descriptions):
    """What a graph needs and has no value for comes from outside."""
    for blueprint in POCKET_BLUEPRINTS.values():
        given = {(target.id, name) for targets in blueprint.inputs.values() for target, name in targets}
        for key, entry in api_format(blueprint, descriptions).items():
            required = descriptions[entry["class_type"]]["input"].get("required", {})
            missing = required.keys() - entry["inputs"].keys()
            assert {(int(key), name) for name in missing} <= given, blueprint.name


def test_four_steps_make_a_picture(host, descriptions):
    graph, outputs = placed("4-step text to image", descriptions, prompt="panda", seed=3, steps=2, batch_size=2)
    graph["save"] = node("SaveImage", images=outputs["IMAGE"], filename_prefix="blueprint")
    pictures = host.images(host.queue(graph))
    assert [picture.shape for picture in pictures] == [(SIZE, SIZE, 3)] * 2
    assert all(picture.std() > 20 for picture in pictures)


def test_style_and_acceleration_give_the_model_of_the_template(host, workflow, descriptions):
    template = workflow("lcm_lora_style_mix")
    expected = host.images(host.queue(template))
    (apply,) = (key for key, entry in template.items() if entry["class_type"] == "LCMLoRA_ApplyVector")
    (checkpoint,) = (key for key, entry in template.items() if entry["class_type"] == "CheckpointLoaderSimple")
    graph, outputs = placed("Style + acceleration", descriptions, model=[f"t{checkpoint}", 0])
    for key, entry in template.items():
        inputs = {
            name: ([f"t{value[0]}", value[1]] if value[0] != apply else outputs["MODEL"])
            if isinstance(value, list) else value
            for name, value in entry["inputs"].items()
        }  # fmt: skip
        graph[f"t{key}"] = node(entry["class_type"], **inputs)
    del graph[f"t{apply}"]
    made = host.images(host.queue(graph))
    assert [one.tobytes() for one in made] == [one.tobytes() for one in expected]


def test_a_folder_is_distilled(host, descriptions):
    models = {"model": ["all", 0], "clip": ["all", 1], "vae": ["all", 2]}
    few = {"steps": 2, "batch_size": 2, "rank": 4, "state_prefix": "", "size": SIZE}
    graph, outputs = placed("Distil from a folder", descriptions, **models, **few)
    graph["all"] = node("CheckpointLoaderSimple", ckpt_name=POCKET)
    graph["report"] = node("PreviewAny", source=outputs["report"])
    graph["what"] = node("LCMLoRA_Inspect", lora=outputs["lora"])
    graph["picture"] = node("PreviewImage", images=outputs["loss"])
    outputs = host.queue(graph)["outputs"]
    assert "rank 4" in outputs["report"]["text"][0] and "8 latents, 8 prompts" in outputs["report"]["text"][0]
    assert outputs["picture"]["images"]
