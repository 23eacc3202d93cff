"""The nodes for LoRA vectors: lcm_core's numbers, metadata that lasts, core's nodes, pictures, interrupts."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lcm_core.lora import METHODS
from tests.host.report import facts_of
from tools.comfy_client import PromptError, cached_nodes

SCRIPT = Path(__file__).with_name("vectors.py")
EXPRESSION, PARENTS = "lcm_lora.expression", "lcm_lora.parents"


@pytest.fixture(scope="module")
def facts(base):
    return facts_of(base, str(SCRIPT))


def parents(facts, metadata):
    """Name -> weight of a record's parents, whose hashes are those of the files."""
    found = json.loads(metadata[PARENTS])
    for parent in found:
        assert parent["sha256"] == facts["records"]["digests"][parent["name"]]
        assert parent["file"] == f"{parent['name']}.safetensors"
    return {parent["name"]: pytest.approx(parent["weight"]) for parent in found}


def test_the_pack_imports_nothing_slow(facts):
    assert facts["imports"]["slow"] == []


@pytest.mark.parametrize(
    "name",
    ["arithmetic", "three", "plain dict", "expression", "compress", "lossless", "preset", "patterns", *METHODS],
)
def test_a_node_makes_the_vector_that_lcm_core_makes(facts, name):
    assert facts["equal"][name] < 2e-6


def test_a_vector_is_extracted_and_its_worst_layer_named(facts):
    found = facts["extraction"]
    assert found["apart"] == 0
    assert found["captured"]
    assert found["worst"] == ["unet.mid_block.resnets.0.conv1", "unet.down_blocks.0.attentions.0.proj_in"]
    assert "give a rank" in found["unlimited"]
    assert found["expression"] == "extract(1*tuned, -1*base, rank=3)"


def test_metadata_and_record_last_until_the_saved_file(facts):
    saved = facts["records"]["saved"]
    assert saved["ss_output_name"] == "papercut" and saved["modelspec.author"] == "someone"
    assert "ss_network_dim" not in saved
    assert saved[EXPRESSION] == "compress(0.8*style + 1*lcm, rank=8)"
    assert parents(facts, saved) == {"style": 0.8, "lcm": 1.0}
    assert facts["records"]["read back"] < 2e-6


def test_a_file_that_is_only_saved_again_keeps_all(facts):
    copied = facts["records"]["copied"]
    assert copied["ss_network_dim"] == "32"
    assert parents(facts, copied) == {"style": 1.0}


def test_a_saved_mix_is_the_parent_of_the_next(facts):
    again = facts["records"]["again"]
    assert again[EXPRESSION] == "2*mixed + 1*unsaved"
    assert parents(facts, again) == {"mixed": 2.0}
    assert again["ss_output_name"] == "papercut"
    assert EXPRESSION not in facts["records"]["plain"]


def test_every_node_records_what_it_did(facts):
    assert facts["records"]["expressions"] == [
        "slerp(1*style, 0.5*lcm, t=0.5)",
        "block_weights(style, blocks=M00: 0.5, rest=1.0)",
        "1*style - 0.5*lcm - 0.5*(0.8*style + 1*lcm)",
    ]
    assert facts["records"]["resized"][0] == "compress(style, sv_ratio=20.0, sv_cumulative=0.5, conv_rank=2)"
    assert facts["records"]["resized"][1] < 2e-6
    for metadata in facts["records"]["kept by"].values():
        assert metadata["ss_output_name"] == "papercut"


def test_a_node_and_the_command_line_record_one_call_alike(facts):
    node, command = facts["records"]["node"], facts["records"]["command"]
    options = "density=0.5, seed=0, majority_sign_method=total, epsilon=0.1"
    assert node[EXPRESSION] == f"compress(della(0.8*style, 1*lcm, {options}), rank=3)"
    assert node == command


def test_a_combination_reports_what_cancels(facts):
    cosine, cancelled = facts["records"]["conflicts"]
    assert cosine == f"cosine of a and b: {facts['records']['cosine']:.4f}"
    assert cancelled.startswith("energy cancelled ") and cancelled.endswith("%")


def test_widgets_keep_their_places(facts):
    """Saved graphs have the values of widgets by position: a new one comes last."""
    assert facts["widgets"]["Combine"] == [
        "method", "weight_a", "weight_b", "weight_c", "weight_d", "density", "t", "seed", "majority_sign_method",
        "per_module", "rank", "energy", "more_weights", "epsilon", "gamma", "mu", "directions", "decay",
    ]  # fmt: skip
    assert facts["widgets"]["required"] == ["a", "b", *facts["widgets"]["Combine"][:12]]
    assert facts["widgets"]["Compress"] == ["rank", "energy", "conv_rank", "sv_ratio", "sv_cumulative"]
    assert facts["widgets"]["Arithmetic"] == ["lambda_1", "lambda_2", "lambda_3", "more_lambdas"]


@pytest.mark.parametrize("name", ["arithmetic", "expression", "combine"])
def test_a_node_takes_any_number_of_vectors_where_the_host_has_growing_inputs(facts, name):
    found = facts["growing"][name]
    assert "has no input 'more'" in found if isinstance(found, str) else found < 2e-6


def test_a_saved_file_has_the_name_that_its_prefix_says(facts):
    today = facts["saving"]["today"]
    assert facts["saving"]["names"] == [
        "numbered/mix_00001_.safetensors",
        "numbered/mix_00002_.safetensors",
        "v1._00001_.safetensors",
        f"{today[:4]}/at_00001_.safetensors",
        f"{today[:7]}/on {int(today[8:])}_00001_.safetensors",
        "%KSampler.seed%_00001_.safetensors",
    ]


def test_what_killed_processes_left_is_deleted_when_the_host_starts(facts):
    assert facts["saving"]["left"] == [False, False]


def test_inspection(facts):
    lines = facts["records"]["inspected"].splitlines()
    assert lines[0] == "architecture: Stable Diffusion 1.x"
    assert "ss_output_name: papercut" in lines
    assert [line for line in lines if line.startswith("ranks: 8 (")]
    assert "made as: compress(0.8*style + 1*lcm, rank=8)" in lines
    digest = facts["records"]["digests"]["lcm"][:12]
    assert lines[-1] == f"  1 × lcm (lcm.safetensors, sha256 {digest}…)"
    assert facts["records"]["inspected plain"].endswith("made as: unknown")


def test_a_lora_is_added_to_every_storage_that_has_a_size_and_refused_for_packed_ones(facts):
    found = facts["stored"]
    assert found["float"] == found["fp8"] == found["quantised"] == "no error"
    assert found["float patches"] == found["fp8 patches"] == found["quantised patches"] > 0
    assert "is packed as torch.uint8" in found["packed"] and "floating-point format" in found["packed"]


def test_core_nodes_take_our_vectors(facts):
    found = facts["in_core"]
    assert found["saved"] < 1e-6
    assert len(set(found["modules"])) == 1
    assert found["apart"] == 0
    assert found["norms"][1] == pytest.approx(found["norms"][0], rel=1e-4)
    assert found["model"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("syntax", ["column 13", "found operator *"]),
        ("unknown", ["'styel'", "style.safetensors", "correct"]),
        ("several", ["'twin'", "new", "old", "write one of these"]),
        ("nothing", ["'zzz'", "no name like it"]),
        ("product", ["column 2", "product of two vectors"]),
        ("minus", ["'style-0.3'", "a space before the sign"]),
        ("number", ["only the number 0.8"]),
        ("empty", ["column 1"]),
        ("pickle", ["pickle.pt"]),
        ("unconnected", ["'c'", "not connected"]),
        ("pickle runs", ["pickle.pt", "is a pickle"]),
    ],
)
def test_a_bad_expression_is_explained(facts, name, said):
    assert [part for part in said if part not in facts["expressions"][name]] == []


def test_an_expression_names_files_in_several_ways_and_sees_them_change(facts):
    found = facts["expressions"]
    assert set(found["good"]) == {True}
    assert found["changed"] == [True, False, True]
    assert found["loader changed"]
    total, style, b = found["report"].splitlines()
    assert total.startswith("0.8*style + 1*lcm: ") and "rank 40" in total
    assert style.startswith("style: ") and "rank 8" in style
    assert b.startswith("b: ") and "rank 32" in b


def test_an_interrupt_stops_a_combination_and_leaves_nothing(facts):
    found = facts["interrupts"]
    assert found["stopped"] and found["files"]
    assert [done for done, _ in found["seen"]] == [1]
    assert found["again"] == 0


def test_a_comparison_is_a_legible_picture_and_a_text(facts):
    found = facts["pictures"]
    batch, height, width, channels = found["shape"]
    assert (batch, channels) == (1, 3) and 400 < height < 2000 and 600 < width < 2500
    assert found["range"] == [0, 1] and found["colours"] > 100
    lines = found["report"].splitlines()
    assert lines[0].startswith("$style$: ") and "rank 8" in lines[0]
    assert [line.rpartition(" ")[2] for line in lines[3:5]] == found["cosines"]
    assert "names 'one' are 1 for 2 vectors" in found["names"]


def test_a_falling_loss_is_drawn_as_a_falling_curve(facts):
    first, last = facts["curves"]["falls"]
    assert first < 0.6 and last > 0.85
    assert facts["curves"]["odd"] == [[1, 432, 768, 3]] * 4


def test_a_sweep_gives_all_pairs_row_by_row(facts):
    found = facts["sweeps"]
    assert found["pairs"] == [[a, b] for a in (0, 0.4, 0.8) for b in (0, 0.5, 1)]
    assert found["labels"][1] == "λ₁ 0, λ₂ 0.5"
    assert found["lists"] == [True] * 4
    assert found["descending"] == [1, 0.5, 0]


def test_the_grid_shows_every_picture_in_its_row(facts):
    batch, height, width, channels = facts["sweeps"]["grid"]
    assert (batch, channels) == (1, 3)
    assert height % 8 == width % 8 == 0
    assert 3 * 40 < height < 3 * 40 + 100 and 3 * 2 * 30 < width < 3 * 2 * 30 + 150
    assert facts["sweeps"]["last row"] == [6, 7, 8]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("few", ["8 pictures", "3 × 3"]),
        ("sizes", ["(1, 8, 8, 3)", "of one size"]),
        ("pairs refused", ["20 × 6", "100 pairs"]),
        ("word", ["lambda_1", "'high'"]),
        ("endless", ["0:1:0", "0:1:0.25"]),
        ("backwards", ["1:0:0.5", "start:end:step"]),
        ("two", ["'0:1'"]),
        ("four", ["'0:1:2:3'"]),
        ("colon", ["':'"]),
        ("nan", ["lambda_1 has 'nan'", "finite"]),
        ("empty", ["give numbers"]),
        ("many", ["up to 100"]),
    ],
)
def test_a_bad_sweep_is_explained(facts, name, said):
    assert [part for part in said if part not in facts["sweeps"][name]] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("empty", ["empty", "nothing to save"]),
        ("empty pair", ["a, b are all empty"]),
        ("lambda", ["lambda_1 is nan"]),
        ("weight", ["weight_a is nan", "1.0"]),
        ("density", ["density is nan", "0.5"]),
        ("choice", ["method has no choice 'mean'", "choose one of auto_strength"]),
        ("dialect", ["dialect has no choice 'webui'", "kohya"]),
        ("literal", ["a is no LORA_MODEL but 'style'", "connect"]),
        ("numbers", ["lora is no LORA_MODEL but {'x': 1}"]),
        ("three", ["slerp has 3 vectors", "2"]),
        ("energy", ["energy is nan"]),
        ("rest", ["rest is nan"]),
        ("list", ["3 block weights", "12 (SDXL)"]),
        ("further", ["more_weights has 2 numbers for 0 further vectors"]),
        ("epsilon", ["density 0.95 and epsilon 0.2", "lower epsilon"]),
        ("ratio", ["sv_ratio is 0.5", "at least 1"]),
        ("line", ["'M00'", "numbers"]),
        ("word", ["'M00: half'", "numbers"]),
        ("twice", ["'M00: 0'", "not a new pattern"]),
        ("pattern", ["'M0x*'", "matches nothing"]),
        ("no lora", ["first_stage_model.x"]),
        ("above", ["'../loras/x'", "below"]),
        ("absolute", ["below"]),
        ("drive", ["C:", "below"]),
        ("endless", ["too long for a file name", "4019 bytes", "981 with its folders"]),
        ("long", ["too long for a file name", "up to 236 bytes"]),
        ("question", ["'new/what?' has '?'", "leave it out"]),
        ("clock", ["has ':'", "leave it out"]),
        ("device", ["'nul' in 'nul/mix' is a device of Windows"]),
        ("unnamed", ["''", "loras/mix.safetensors"]),
        ("float16", ["float16", "float32"]),
    ],
)
def test_bad_input_is_explained(facts, name, said):
    assert [part for part in said if part not in facts["refused"][name]] == []


def test_bad_input_writes_nothing(facts):
    assert facts["refused"]["nothing written"]


def test_the_server_runs_an_expression_again_when_its_file_changes(host, base):
    path = base / "models" / "loras" / "test_expression.safetensors"
    graph = {
        "1": {"class_type": "LCMLoRA_Expression", "inputs": {"expression": "0.5*test_expression"}},
        "2": {"class_type": "LCMLoRA_Inspect", "inputs": {"lora": ["1", 0]}},
    }
    said = []
    try:
        for value in (1.0, 1.0, 2.0):
            ones = np.full((2, 2), value, np.float32)
            if not said or value == 2:
                save_file({"lora_unet_x.lora_down.weight": ones, "lora_unet_x.lora_up.weight": ones}, path)
            entry = host.queue(graph)
            said.append((cached_nodes(entry), entry["outputs"]["2"]["text"][0]))
    finally:
        path.unlink()
    assert [bool(cached) for cached, _ in said] == [False, True, False]
    norms = [next(line for line in text.splitlines() if line.startswith("norm: ")) for _, text in said]
    assert norms == ["norm: 2; largest in other 2", norms[0], "norm: 8; largest in other 8"]
    with pytest.raises(PromptError, match="no LoRA vector is named 'test_expression'"):
        host.queue(graph)
