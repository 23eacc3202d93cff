"""What nodes tell, in the nodes: it stays after the job, warnings have a colour, and it comes back with the outputs."""

from __future__ import annotations

import pytest

GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "pocket.safetensors"}},
    "2": {
        "class_type": "LCMLoRA_Loader",
        "inputs": {
            "model": ["1", 0],
            "lora_name": "pocket_lcm.safetensors",
            "strength": 1.0,
            "recipe": "SDXL-Lightning",
        },
    },
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 2]}},
    "4": {"class_type": "LCMLoRA_LoadVector", "inputs": {"lora_name": "pocket_lcm.safetensors"}},
    "5": {"class_type": "LCMLoRA_Inspect", "inputs": {"lora": ["4", 0]}},
}
WARNING = "⚠ SDXL-Lightning is for SDXL and the model is SD1.5; choose another recipe or model"
LINES = """id => app.graph.getNodeById(id).widgets
  .filter(({ name }) => ['lcm_lora_text', '$$node-text-preview'].includes(name))
  .flatMap(({ element }) => [...element.children])
  .map((line) => [line.textContent, getComputedStyle(line).color])"""


@pytest.fixture
def front(front):
    load(front)
    yield front
    front.load()


def load(front) -> None:
    front.ask("probe.mark()")
    front.ask("graph => app.loadApiJson(graph, 'told')", GRAPH)
    front.wait_for_graph(len(GRAPH))


def seen(front) -> list[str]:
    front.ask("probe.still()")
    return front.page.locator(".lcm-lora-text:visible").all_inner_texts()


def test_a_nodes_text_stays_and_a_new_runs_takes_its_place(front):
    assert seen(front) == []
    assert front.run() == "success"
    (warned, loaded, *_), (inspected,) = front.ask(LINES, "2"), front.ask(LINES, "5")
    assert "82 of 82 modules" in loaded[0] and warned[0] == WARNING and "architecture: " in inspected[0]
    assert warned[1] != loaded[1] == inspected[1], "a warning looks like any line"
    shown = seen(front)
    assert len(shown) == 2 and sum(WARNING in text for text in shown) == 1
    front.keep("told")

    front.ask("app.graph.getNodeById('2').widgets.find(({ name }) => name === 'recipe').value = 'auto'")
    assert front.run() == "success"
    shown = seen(front)
    assert len(shown) == 2 and not any(WARNING in text for text in shown)
    assert inspected[0] in shown, "the text of a node that did not run again is gone"


def test_a_nodes_text_comes_back_with_the_outputs_of_its_graph(front):
    assert front.run() == "success"
    before = sorted(seen(front))
    front.ask("window.kept = JSON.parse(JSON.stringify(app.nodeOutputs))")
    load(front)
    assert seen(front) == []
    front.ask("app.nodeOutputs = kept")  # as when a workflow's tab or a finished job is opened
    assert sorted(seen(front)) == before and len(before) == 2
