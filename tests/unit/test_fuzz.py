"""A short run of tests/fuzz/files.py, and what its files begin as."""

import json
import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from lcm_core.lora import LoRAVector
from lcm_core.lora.file import LoRAFile
from tests.fuzz.damage import damaged, opened
from tests.fuzz.seeds import every_kind, seeds

SCRIPT = Path(__file__).parents[1] / "fuzz" / "files.py"
SEEDS = seeds()


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_the_undamaged_files_are_read(tmp_path, seed):
    path = tmp_path / "a.safetensors"
    path.write_bytes(opened(seed).content(Random(0)))
    try:
        assert LoRAVector.load(path).norm() > 0
    except ValueError:
        assert LoRAFile.of(*seed).native()


def test_every_kind_that_is_a_vector_is_there():
    vector = LoRAVector.from_state_dict(*every_kind())
    assert (len(vector.modules), len(vector.diffs)) == (4, 2)
    assert vector.modules["unet.conv_in"].alpha == 2


def test_damage_is_repeatable_and_of_many_kinds():
    contents = [damaged(SEEDS[0], Random(f"0 {i}")).content(Random(i)) for i in (*range(50), *range(50))]
    assert contents[:50] == contents[50:]
    assert len(set(contents)) > 45


@pytest.mark.skipif(os.name == "nt", reason="the script needs fork and RLIMIT_AS")
def test_damaged_files_are_read_or_refused():
    command = [sys.executable, SCRIPT, "--count", "200", "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = json.loads(done.stdout)
    assert found["findings"] == []
    assert done.returncode == 0
    assert found["files"] == 200
    assert 20 < found["read"] < 180
