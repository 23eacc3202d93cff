"""The pack in a real server: its nodes' descriptions, every shipped workflow, the same seed twice, and bad prompts."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from pocket.judge import as_batch, load_judge
from tools import pocket_templates
from tools.comfy_client import PromptError
from tools.parts import subgraphs
from tools.parts.workflows import files
from tools.templates import ON_POCKET, TEMPLATES
from tools.templates.common import SIZE
from tools.templates.thumbnail import sheet

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(file.stem for file in (ROOT / "workflows" / "api").glob("*.json"))
PICTURES = Path(__file__).parent / "pictures"
NODES = {
    f"LCMLoRA_{name}"
    for name in (
        "Sampler",
        "SamplerSelect",
        "Schedule",
        "ModelSampling",
        "Loader",
        "LoadVector",
        "ApplyVector",
        "Hooks",
        "Arithmetic",
        "Expression",
        "Combine",
        "Compress",
        "Extract",
        "BlockWeights",
        "Compare",
        "Inspect",
        "Sweep",
        "SweepGrid",
        "SaveVector",
    )
}
BASELINE = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "pocket.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "cat", "clip": ["1", 1]}},
    "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "", "clip": ["1", 1]}},
    "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "5": {
        "class_type": "KSampler",
        "inputs": {
            "model": ["1", 0],
            "positive": ["2", 0],
            "negative": ["3", 0],
            "latent_image": ["4", 0],
            "seed": 3,
            "steps": 4,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
    },
    "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
    "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "baseline"}},
}


@pytest.fixture(scope="module")
def own_nodes(host):
    found = {key: node for key, node in host.object_info().items() if key.startswith("LCMLoRA_")}
    assert found, "the server has none of the pack's nodes: .host/logs/test.log says why"
    return found


def described_inputs(node):
    """(name, type, options) of every input of an /object_info entry."""
    for group in ("required", "optional"):
        for name, spec in node["input"].get(group, {}).items():
            yield name, spec[0], spec[1] if len(spec) > 1 else {}


def test_all_nodes_are_there(own_nodes):
    assert own_nodes.keys() >= NODES


def test_category_and_description(own_nodes):
    wrong = [key for key, node in own_nodes.items() if not node["category"].startswith("LCM-LoRA")]
    silent = [key for key, node in own_nodes.items() if not node["description"]]
    assert (wrong, silent) == ([], [])


def test_every_input_has_a_tooltip(own_nodes):
    silent = [
        f"{key}.{name}"
        for key, node in own_nodes.items()
        for name, _, options in described_inputs(node)
        if not options.get("tooltip")
    ]
    assert silent == []


def test_every_number_has_a_default_and_a_range(own_nodes):
    numbers = [
        (f"{key}.{name}", options)
        for key, node in own_nodes.items()
        for name, kind, options in described_inputs(node)
        if kind in ("INT", "FLOAT")
    ]
    wrong = [name for name, options in numbers if not {"default", "min", "max"} <= options.keys()]
    outside = [name for name, o in numbers if name not in wrong and not o["min"] <= o["default"] <= o["max"]]
    assert (wrong, outside) == ([], [])


def test_lcm_sampler_shows_four_values_and_marks_the_others_as_advanced(own_nodes):
    values = [
        (name, options)
        for name, kind, options in described_inputs(own_nodes["LCMLoRA_Sampler"])
        if isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    ]
    assert [name for name, options in values if not options.get("advanced")] == ["seed", "steps", "cfg", "denoise"]
    assert len(values) == 15


def test_what_people_search_finds_a_node_where_the_host_has_search_aliases(own_nodes):
    if "search_aliases" not in own_nodes["LCMLoRA_Sampler"]:
        pytest.skip("this host has no search_aliases")
    words = [word for node in own_nodes.values() for word in node["search_aliases"]]
    searches = "acceleration", "few step", "turbo", "fast", "merge lora", "xy plot", "lora info", "resize"
    assert [search for search in searches if not any(search in word for word in words)] == []


def test_templates_fit_the_nodes(host):
    """If not, `python tools/make.py workflows` writes them anew."""
    descriptions = host.object_info()
    written = {path: text for template in TEMPLATES for path, text in files(template, descriptions).items()}
    assert {path.stem for path in written} == set(WORKFLOWS)
    written |= subgraphs.files(descriptions)
    assert [path.name for path, text in written.items() if path.read_text(encoding="utf-8") != text] == []


def test_serve_offers_the_templates_that_run_on_the_pocket_model(host, tmp_path):
    """But those whose files the tests alone have."""
    pocket_templates.main(host.url, tmp_path)
    written = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in tmp_path.glob("*.json")}
    assert written.keys() == {path.stem for path in tmp_path.glob("*.jpg")}
    assert ON_POCKET.keys() - written.keys() <= {"full_lcm_guidance", "sdxl_lightning_hyper_dmd2"}
    for name, workflow in written.items():
        values = [value for node in workflow["nodes"] for value in node["widgets_values"]]
        loaded = {value for value in values if str(value).endswith(".safetensors")}
        assert loaded and all(value.startswith(("pocket", "test_", "Hyper")) for value in loaded), name


@pytest.mark.parametrize("name", [template.name for template in ON_POCKET.values() if not template.trains])
def test_workflow_gives_the_stored_pictures(name, sample, workflow, stand_in, request):
    pictures = sample(workflow(name))
    assert pictures
    if request.config.getoption("--store-pictures"):
        store(name, pictures)
    stored = PICTURES / f"{name}.png"
    assert stored.exists(), "look at the workflow's picture, then store it: run.py test tests/host --store-pictures"
    difference = np.abs(coarse(sheet(pictures)) - coarse(np.asarray(Image.open(stored).convert("RGB"))))
    assert difference.mean() < 4 and difference.max() < 32


def store(name, pictures):
    PICTURES.mkdir(exist_ok=True)
    Image.fromarray(sheet(pictures)).save(PICTURES / f"{name}.png")


def test_a_training_makes_few_steps_surer(host, workflow, request):
    """The judge is surer of what it sees in the pictures with the LoRA that was trained than in those without."""
    graph = workflow("distil_your_own")
    trained = small_pictures(host.queue(graph), host)
    if request.config.getoption("--store-pictures"):
        store("distil_your_own", trained)
    (sampler,) = (node for node in graph.values() if node["class_type"] == "LCMLoRA_Sampler")
    (teacher,) = (key for key, node in graph.items() if node["class_type"] == "CheckpointLoaderSimple")
    sampler["inputs"]["model"] = [teacher, 0]
    without = small_pictures(host.queue(graph), host)
    assert len(trained) == len(without) == 4
    certainty = load_judge().logits(as_batch(np.stack([*without, *trained])))["object"].softmax(1).amax(1)
    before, after = (part.mean() for part in certainty.chunk(2))
    assert after > before + 0.05, f"{after} with the LoRA, {before} without"


def small_pictures(entry, host):
    """The pictures of a run that have the pocket model's size."""
    return [picture for picture in host.images(entry) if picture.shape == (SIZE, SIZE, 3)]


def test_a_training_learns_from_a_folder(host, workflow, request):
    """Two steps, unless its picture is to be stored, which 40 make."""
    storing, graph = request.config.getoption("--store-pictures"), workflow("distil_from_folder")
    (training,) = (node for node in graph.values() if node["class_type"] == "LCMLoRA_Distill")
    (shown,) = (key for key, node in graph.items() if node["class_type"] == "PreviewAny")
    training["inputs"] |= {} if storing else {"steps": 2, "rank": 4}
    entry = host.queue(graph)
    report = entry["outputs"][shown]["text"][0]
    assert "8 latents, 8 prompts" in report and f"{training['inputs']['steps']} steps" in report
    pictures = small_pictures(entry, host)
    assert len(pictures) == 4
    if storing:
        store("distil_from_folder", pictures)


def coarse(image):
    """Means of 4 × 4 pixels: what is seen, without the last bits of another CPU's arithmetic."""
    height, width = (side // 4 for side in image.shape[:2])
    return image[: height * 4, : width * 4].reshape(height, 4, width, 4, 3).mean((1, 3), dtype=np.float64)


def set_input(graph, class_type, name, value):
    """A copy of the graph with one input of the first node of that class set."""
    graph = copy.deepcopy(graph)
    node = next(node for node in graph.values() if node["class_type"] == class_type)
    assert name in node["inputs"]
    node["inputs"][name] = value
    return graph


@pytest.fixture
def foreign_lora(base):
    """The file name of a LoRA with SDXL's shapes, in the host's folder while the test runs."""
    path = base / "models" / "loras" / "test_foreign_sdxl.safetensors"
    block = "lora_unet_input_blocks_7_1_transformer_blocks_9_attn2_to_k"
    down, up = np.ones((4, 2048), np.float32), np.ones((1280, 4), np.float32)
    save_file({f"{block}.lora_down.weight": down, f"{block}.lora_up.weight": up}, path)
    yield path.name
    path.unlink()


@pytest.fixture(scope="module")
def good(sample, workflow):
    """Pictures before anything went wrong: with the LCM-LoRA, and of the model alone."""
    return sample(workflow("lcm_lora_txt2img")), sample(BASELINE)


@pytest.mark.parametrize(
    ("class_type", "name", "value", "said"),
    [
        ("LCMLoRA_Loader", "lora_name", "missing.safetensors", ["missing.safetensors"]),
        ("LCMLoRA_Loader", "lora_name", "foreign", ["test_foreign_sdxl.safetensors", "SDXL"]),
        ("LCMLoRA_Loader", "strength", math.nan, ["strength", "nan"]),
        ("LCMLoRA_Sampler", "steps", -1, ["steps", "-1", "0"]),
        ("LCMLoRA_Sampler", "steps", 51, ["steps", "51", "50"]),
        ("LCMLoRA_Sampler", "denoise", math.nan, ["denoise", "nan"]),
        ("LCMLoRA_Sampler", "cfg", math.nan, ["cfg", "nan"]),
    ],
)
def test_bad_prompt_is_refused_and_leaves_no_trace(
    class_type, name, value, said, good, host, sample, workflow, foreign_lora
):
    value = foreign_lora if value == "foreign" else value
    with pytest.raises(PromptError) as caught:
        host.queue(set_input(workflow("lcm_lora_txt2img"), class_type, name, value))
    text = str(caught.value).lower()
    assert [word for word in said if word.lower() not in text] == []
    for before, after in zip(good, (sample(workflow("lcm_lora_txt2img")), sample(BASELINE)), strict=True):
        np.testing.assert_array_equal(before, after)


def test_history_keeps_the_error(host, workflow, foreign_lora):
    with pytest.raises(PromptError) as caught:
        host.queue(set_input(workflow("lcm_lora_txt2img"), "LCMLoRA_Loader", "lora_name", foreign_lora))
    status = caught.value.entry["status"]
    assert status["status_str"] == "error"
    assert "execution_error" in dict(status["messages"])


@pytest.mark.parametrize(("node", "inputs"), [
    ("LoadVector", {"lora_name": "\ud800"}),
    ("Loader", {"lora_name": "\ud800.safetensors", "strength": 1.0, "model": ["model", 0]}),
    ("Extract", {"tuned": "\ud800", "base": "a\x00", "rank": 4, "energy": 1.0, "norms_and_biases": False}),
])  # fmt: skip
def test_a_name_that_can_t_be_printed_is_explained_and_the_server_goes_on(host, node, inputs):
    """The host logs what a node's fingerprint raises, and its worker ends where the log can't be written."""
    graph = {
        "model": BASELINE["1"],
        "node": {"class_type": f"LCMLoRA_{node}", "inputs": inputs},
        "sink": {"class_type": "PreviewAny", "inputs": {"source": ["node", 0]}},
    }
    with pytest.raises(PromptError, match="choice|no file|not in list"):
        host.queue(graph)
    assert host.queue(copy.deepcopy(BASELINE))
