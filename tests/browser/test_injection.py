"""Texts of strangers, a LoRA's metadata, file names and values of a workflow, in the page: shown, never run."""

from __future__ import annotations

import sys

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

ACT = "window.injected=(window.injected||[]).concat"
IMAGE = f"<img src=x onerror={ACT}(1)>"
LINK = f"[[y|https://y onfocus={ACT}(2) autofocus tabindex=1 z]] http://z/__LNK0__"  # a link inside a link's address


@pytest.fixture(scope="module")
def hostile_lora(base):
    """The name of a LoRA for the pocket model with markup in its name and in its title."""
    if sys.platform == "win32":
        pytest.skip("Windows has no file names with < and >")
    loras = base / "models" / "loras"
    path = loras / f"test_{IMAGE}.safetensors"
    with safe_open(loras / "pocket_lcm.safetensors", framework="pt") as file:
        metadata = file.metadata() or {}
    title = {"modelspec.title": f"{IMAGE} {LINK}", "modelspec.author": "__LNK7__"}
    save_file(load_file(loras / "pocket_lcm.safetensors"), path, metadata | title)
    yield path.name
    path.unlink()


@pytest.fixture
def page(front):
    """The page of the front end, newly loaded, in which a script of ours has left its mark if one has run."""
    front.load()
    yield front
    front.load()


def run(front, graph):
    front.ask("graph => app.loadApiJson(graph, 'injected')", graph)
    front.wait_for_graph(len(graph))
    ended = front.run()
    front.ask("new Promise((resolve) => setTimeout(resolve, 500))")  # an image's onerror and a focus come later
    assert front.ask("window.injected ?? []") == []
    assert [error for error in front.errors if "execution" not in error.lower()] == []
    return ended


def seen(front) -> str:
    """What is to be read in the nodes' texts and text fields, and in a dialog."""
    texts = front.page.locator(".lcm-lora-text").all_inner_texts() + front.dialog.all_inner_texts()
    fields = front.page.locator("textarea").all()
    return "\n".join(texts + [field.input_value() for field in fields])


def node(class_type, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def test_a_lora_file(page, hostile_lora):
    graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="pocket.safetensors"),
        "2": node("LCMLoRA_Loader", model=["1", 0], lora_name=hostile_lora, strength=1.0),
        "3": node("LCMLoRA_Inspect", lora=["2", 1]),
        "4": node("PreviewAny", source=["2", 2]),
        "5": node("PreviewAny", source=["3", 0]),
    }
    assert run(page, graph) == "success"
    text = seen(page)
    for part in (f"test_{IMAGE}", f"modelspec.title: {IMAGE} [[y|https://y", "modelspec.author: __LNK7__"):
        assert text.count(part) >= 2, f"{part} is not in the text of the node and in PreviewAny's"


@pytest.mark.parametrize("markup", [IMAGE, LINK.replace("//", "--").replace("/", "-")], ids=["image", "link"])
def test_a_files_prefix(page, hostile_lora, markup):
    graph = {
        "1": node("LCMLoRA_LoadVector", lora_name=hostile_lora),
        "2": node("LCMLoRA_SaveVector", lora=["1", 0], filename_prefix=f"loras/{markup}", dialect="kohya",
                  dtype="float16"),
    }  # fmt: skip
    run(page, graph)  # written, or refused with an error that quotes it
    assert markup in seen(page)


def test_an_error_message(page, hostile_lora):
    graph = {
        "1": node("LCMLoRA_LoadVector", lora_name=hostile_lora),
        "2": node("LCMLoRA_BlockWeights", lora=["1", 0], weights=f"{IMAGE} {LINK}: x", rest=1.0),
        "3": node("LCMLoRA_Inspect", lora=["2", 0]),
    }
    assert run(page, graph) == "error"
    assert IMAGE in seen(page)
