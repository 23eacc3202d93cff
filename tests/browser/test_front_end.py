"""The pack in the host's own front end, as a user opens it: templates, help, Chinese, errors, saved pictures."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from front_end import JPEG, FrontEnd
from PIL import Image

from tools.templates import ON_POCKET
from tools.templates.blueprints import BLUEPRINTS
from tools.templates.common import for_released
from tools.templates.graph import api_format

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "workflows").glob("*.json"))
TOO_MANY_FILES = "wan22_lightning_video"  # two experts and their LoRAs have long names: no whole graph fits a window
FEWER = {"0, 0.4, 0.8": "0, 0.8", "0, 0.5, 1": "0.5, 1"}  # 4 pairs of λ, not 9: the host tests make all
# Run by its Run button here; the others' pictures are the host tests', and `--store-screenshots` runs all.
RUN = {"lcm_lora_txt2img", "lcm_lora_lambda_grid", "lora_vector_surgery", "distil_your_own", "full_lcm_guidance"}
TRAINING = {"LCMLoRA_Distill", "LCMLoRA_Finetune"}
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.fixture(scope="module")
def object_info(host) -> dict[str, dict]:
    """Every node as the host describes it."""
    return host.object_info()


@pytest.fixture(scope="module")
def descriptions(object_info) -> dict[str, dict]:
    """The pack's nodes alone."""
    return {key: node for key, node in object_info.items() if key.startswith("LCMLoRA_")}


@pytest.fixture(scope="module")
def hovered() -> set[str]:
    """The node types whose tooltips were seen."""
    return set()


def inputs(description: dict) -> dict[str, tuple[str, dict]]:
    """name → (type, options) of a node's inputs."""
    groups = (description["input"].get(group, {}) for group in ("required", "optional"))
    return {
        name: ("COMBO" if isinstance(spec[0], list) else spec[0], spec[1] if len(spec) > 1 else {})
        for group in groups
        for name, spec in group.items()
    }


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def node_of(front: FrontEnd, node_type: str) -> str:
    return next(node["id"] for node in front.ask("probe.own()") if node["type"] == node_type)


def check_own_nodes(
    front: FrontEnd, descriptions: dict[str, dict], titles: dict[str, str | None], hovered: set[str]
) -> None:
    """The pack's nodes have their titles and a widget for each value, and the tooltips that the host describes."""
    own = front.ask("probe.own()")
    assert own, "none of the pack's nodes is on the canvas"
    for node in own:
        described = inputs(descriptions[node["type"]])
        assert node["title"] == (titles[node["id"]] or descriptions[node["type"]]["display_name"])
        values = {
            name for name, (kind, options) in described.items() if kind in WIDGETS and not options.get("forceInput")
        }
        assert values <= set(node["widgets"])
        if node["type"] in hovered:
            continue
        hovered.add(node["type"])
        assert front.tooltip(node["id"], "title") == descriptions[node["type"]]["description"]
        for name in [*node["slots"][:1], *[name for name in node["drawn"] if name in described][:2]]:
            assert front.tooltip(node["id"], name) == described[name][1]["tooltip"]


def test_template_browser(front):
    """The pack is an extension there, with a name and a thumbnail for each of its templates."""
    cards = front.browse_templates()
    first, *_ = [front.template_card(cards, path.stem) for path in TEMPLATES]
    assert cards.locator("> *").count() == len(TEMPLATES)
    first.scroll_into_view_if_needed()
    front.keep("template_browser", front.dialog.screenshot(**JPEG))
    assert not front.errors, "\n".join(front.errors)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_template(path, front, object_info, descriptions, hovered, pytestconfig):
    template = load(path)
    count = len(template["nodes"])
    front.open_template(path.stem, count)
    if models := models_of(template):
        assert front.offered_models() == models
    assert front.dialog.count() + front.toasts.count() == 0, front.dialog.or_(front.toasts).all_inner_texts()
    check_own_nodes(front, descriptions, {str(node["id"]): node.get("title") for node in template["nodes"]}, hovered)
    exported = front.export_api()
    for node in exported.values():  # the front end has widgets that the host knows nothing of
        node["inputs"] = {k: v for k, v in node["inputs"].items() if k in inputs(object_info[node["class_type"]])}
    assert exported == load(ROOT / "workflows" / "api" / path.name)
    if path.stem not in (ON_POCKET if pytestconfig.getoption("--store-screenshots") else RUN):
        front.fit_view()
        front.keep(path.stem, front.picture_of(**JPEG))
        defects = [
            said for said in front.ask("probe.defects()") if path.stem != TOO_MANY_FILES or "so large" not in said
        ]
        assert not front.errors + defects, "\n".join(front.errors + defects)
        return

    front.ask("probe.standIn", pocket_values(path.stem, object_info))
    unknown = front.ask("probe.unknown()")
    assert not unknown, "\n".join(unknown)
    front.fit_view()
    saved = front.workflow()
    before = {node: front.picture_of(node) for node in front.ask("probe.outputs()")}
    assert front.run() == "success", front.dialog.all_inner_texts()
    pictures = front.pictures()
    assert pictures, "the run left no picture on the canvas"
    for shown in pictures:
        assert not same(before[shown["id"]], front.picture_of(shown["id"])), "the canvas does not show the picture"
    front.keep(path.stem, front.picture_of(**JPEG))
    defects = front.ask("probe.defects()")

    file = pictures[0]["files"][0]
    front.drop(file["filename"], front.download(file), count)
    assert front.workflow() == saved
    assert not front.errors + defects, "\n".join(front.errors + defects)


def pocket_values(name: str, object_info: dict[str, dict]) -> dict[str, dict]:
    """node -> input -> value: what a template has on the pocket model, for fewer λ and trained for 2 new steps."""
    values = {}
    for node, entry in api_format(ON_POCKET[name], object_info).items():
        trains = entry["class_type"] in TRAINING
        own = {k: FEWER.get(v, v) for k, v in entry["inputs"].items() if not isinstance(v, list)}
        values[node] = own | ({"steps": 2, "state_prefix": ""} if trains else {})
    return values


@pytest.mark.parametrize("describe", BLUEPRINTS, ids=lambda describe: describe.__name__)
def test_blueprint(describe, front, object_info):
    """Added by search it is one node, whose widgets reach the nodes in it; the front end makes our API graph of it."""
    blueprint = describe(for_released)
    front.errors.clear()
    front.add_by_search(blueprint.name)
    (node,) = front.ask("app.graph.nodes.map(({ id }) => id)")
    expected = api_format(blueprint, object_info)
    changed = {name for name in ("steps", "size") if name in blueprint.inputs}
    for name in changed:
        front.ask(
            "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value = 17", [node, name]
        )
        for target, its_name in blueprint.inputs[name]:
            expected[str(target.id)]["inputs"][its_name] = 17
    exported = {}
    for key, entry in front.export_api().items():
        known = inputs(object_info[entry["class_type"]])
        entry["inputs"] = {k: inner(v) for k, v in entry["inputs"].items() if k in known}
        exported[inner(key)] = entry
    assert exported == expected
    assert not front.errors, "\n".join(front.errors)


def inner(value):
    """A node's key, or a link, as it is inside of a subgraph."""
    if isinstance(value, list):
        return [inner(value[0]), value[1]]
    return value.rpartition(":")[2] if isinstance(value, str) and value.partition(":")[0].isdigit() else value


def models_of(template: dict) -> dict[str, str]:
    """`folder / name` -> address of the files that a template's nodes say they need; the host has none of them."""
    nodes = [node["properties"].get("models", []) for node in template["nodes"]]
    return {f"{model['directory']} / {model['name']}": model["url"] for models in nodes for model in models}


def same(one: bytes, other: bytes) -> bool:
    """Whether less than 1% of two screenshots' pixels differ."""
    a, b = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int16) for data in (one, other))
    return a.shape == b.shape and (np.abs(a - b).max(-1) > 16).mean() < 0.01


def test_chinese(front, descriptions):
    """The language is chosen in the settings; names of the nodes come from locales/zh after the next load."""
    file = ROOT / "locales" / "zh" / "nodeDefs.json"
    assert file.exists(), f"{file.relative_to(ROOT)} is not there"
    chinese = load(file)
    assert chinese.keys() >= descriptions.keys()
    names = {node: chinese[node]["display_name"] for node in descriptions}
    try:
        front.choose_setting("Comfy.Locale", "中文")
        front.load()
        title = front.ask("LiteGraph.registered_node_types.LCMLoRA_Sampler.title")
        assert title == names["LCMLoRA_Sampler"], "front end 1.32 forgets the translations of node packs; use 1.33.14"
        front.add_by_search(names["LCMLoRA_Sampler"])
        (node,) = front.ask("probe.own()")
        assert (node["type"], node["title"]) == ("LCMLoRA_Sampler", names["LCMLoRA_Sampler"])
        front.search_library("LCMLoRA_")
        for name in names.values():
            front.found_in_library(name).wait_for()
        front.keep("chinese")
        front.open_help_in_library(names["LCMLoRA_Sampler"])
        check_help(front, "LCMLoRA_Sampler/zh")
    finally:
        front.set("Comfy.Locale", "en")
        front.load()


def test_help_page_of_a_node_on_the_canvas(front, object_info):
    open_first_template(front, object_info)
    node = node_of(front, "LCMLoRA_Sampler")
    front.click(node, "title")
    front.page.get_by_test_id("info-button").click()
    check_help(front, "LCMLoRA_Sampler")
    front.keep("help")


def test_help_page_of_every_node_in_the_library(front, descriptions):
    front.search_library("LCMLoRA_")
    for node, description in descriptions.items():
        front.open_help_in_library(description["display_name"])
        check_help(front, node)
        front.page.locator(".sidebar-content-container .pi-arrow-left").click()


def check_help(front: FrontEnd, page: str) -> None:
    """The help page that is open is web/docs/<page>.md, and its pictures are there."""
    file = ROOT / "web" / "docs" / f"{page}.md"
    assert file.exists(), f"{file.relative_to(ROOT)} is not there"
    title = file.read_text(encoding="utf-8").splitlines()[0]
    assert title.startswith("# "), f"{file.name} does not begin with a heading"
    help_page = front.page.locator(".node-help-content .markdown-content")
    help_page.get_by_role("heading", name=title.removeprefix("# "), exact=True).first.wait_for()
    front.page.wait_for_function(
        "[...document.querySelectorAll('.node-help-content img')].every((image) => image.complete)"
    )
    missing = "images => images.filter((image) => !image.naturalWidth).map((image) => image.src)"
    assert help_page.locator("img").evaluate_all(missing) == []


def open_first_template(front: FrontEnd, object_info: dict[str, dict]) -> None:
    """Text to image, on the pocket model."""
    front.open_template("lcm_lora_txt2img", len(load(ROOT / "workflows" / "lcm_lora_txt2img.json")["nodes"]))
    front.offered_models()
    front.ask("probe.standIn", pocket_values("lcm_lora_txt2img", object_info))


def test_bad_value_shows_our_message(front, object_info):
    open_first_template(front, object_info)
    front.type_into(node_of(front, "LCMLoRA_Sampler"), "timesteps", "1, 2")
    front.press_run()
    report = front.page.locator(".comfy-error-report")
    report.wait_for()
    assert "timestep 2 follows 1; give the timesteps in descending order" in report.inner_text()
    front.keep("bad_value")
    front.close_dialog()
