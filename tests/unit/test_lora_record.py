import hashlib
import json

import pytest
import torch

from lcm_core.lora import LoRAVector, write_lora
from lcm_core.lora.record import EXPRESSION, PARENTS, call_record, file_record, sum_record

STATE = {"lora_unet_conv_in.lora_down.weight": torch.ones(1, 2), "lora_unet_conv_in.lora_up.weight": torch.ones(2, 1)}


@pytest.fixture
def files(tmp_path):
    """Metadata records of two files, style and "1 lcm", with the files."""
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("style", "1 lcm")}
    for i, path in enumerate(paths.values()):
        write_lora(path, STATE, {"place": str(i)})
    return [file_record(path) for path in paths.values()], list(paths.values())


def weights_of(record):
    return {parent["name"]: parent["weight"] for parent in json.loads(record[PARENTS])}


def test_record_of_a_file(files):
    (style, lcm), (path, _) = files
    assert (style[EXPRESSION], lcm[EXPRESSION]) == ("style", '"1 lcm"')
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(style[PARENTS]) == [{"name": "style", "file": path.name, "sha256": digest, "weight": 1.0}]


def test_a_file_that_changes_gets_another_hash(files):
    (before, _), (path, _) = files
    path.write_bytes(path.read_bytes() + b" ")
    assert file_record(path)[PARENTS] != before[PARENTS]


def test_records_of_sums_and_calls_nest(files):
    style, lcm = files[0]
    mix = sum_record([style, lcm], [0.8, -1.0])
    assert mix[EXPRESSION] == '0.8*style - 1*"1 lcm"'
    small = call_record("compress", [mix], rank=64, energy=None)
    assert small[EXPRESSION] == 'compress(0.8*style - 1*"1 lcm", rank=64)'
    again = sum_record([small, style], [2.0, 0.5])
    assert again[EXPRESSION] == '2*(compress(0.8*style - 1*"1 lcm", rank=64)) + 0.5*style'
    assert weights_of(again) == {"style": pytest.approx(2.1), "1 lcm": -2.0}
    assert (
        call_record("ties", [style, lcm], [0.5, 1], density=0.5)[EXPRESSION]
        == 'ties(0.5*style, 1*"1 lcm", density=0.5)'
    )


def test_a_term_without_a_record_and_a_damaged_one(files):
    style = files[0][0]
    record = sum_record([{}, {PARENTS: '[{"sha256": 1}]', EXPRESSION: "x"}, style], [1, 1, 1])
    assert record[EXPRESSION] == "1*unsaved + 1*x + 1*style"
    assert weights_of(record) == {"style": 1.0}


def test_algebra_drops_a_record_that_it_would_contradict(files):
    vector = LoRAVector.from_state_dict(STATE, {**files[0][0], "ss_tag": "kept"})
    for changed in (0.5 * vector, vector + vector, vector.compress(rank=1)):
        assert changed.metadata == {"ss_tag": "kept"}
