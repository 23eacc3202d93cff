"""Every kind's file is whole, and the guide's new kind works by being there."""

import itertools
import re
from pathlib import Path

import pytest
import torch

from lcm_core import cli
from lcm_core.lora import LoRAVector, kinds, write_lora
from lcm_core.lora.file import LoRAFile

ROOT = Path(__file__).resolve().parents[2]
Q = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def guide(tmp_path, monkeypatch):
    """The package with the kind of the guide in its folder."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(\"\"\"\(IA\).*?)^```", text, re.M | re.S)
    (tmp_path / "guided_ia3.py").write_text(example, encoding="utf-8")
    caches = (kinds.kinds, kinds._roles, kinds._suffix, kinds.split_key)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    for cache in caches:
        cache.cache_clear()
    yield
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_the_guides_new_kind_is_read_applied_described_and_refused_as_a_vector(guide, tmp_path, capsys):
    numbers, weight = torch.randn(5), torch.randn(5, 6)
    for key in (f"lora_unet_{Q.replace('.', '_')}.ia3_l", f"base_model.model.{Q}.ia3_l.default"):
        file = LoRAFile.of({key: numbers})
        assert file.sizes == {f"unet.{Q}.weight": (5, None)}
        (module,) = file.normal_modules
        torch.testing.assert_close(weight + kinds.change(module, weight), torch.diag(1 + numbers) @ weight)
    assert [key.rpartition(".")[2] for key in file.native()] == ["ia3_l"]
    with pytest.raises(ValueError, match=r"\(IA\)³ weights can't be summed as a vector: \(IA\)³ multiplies"):
        file.vector()
    write_lora(tmp_path / "a.safetensors", {key: numbers})
    assert cli.main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    assert "(IA)³" in capsys.readouterr().out


def test_a_role_and_what_ends_a_key_are_one_kinds_alone():
    for a, b in itertools.combinations(kinds.kinds(), 2):
        assert not a.roles.keys() & b.roles.keys()
    for kind in kinds.kinds():
        assert (kind.factors is None) == bool(kind.not_a_vector), kind
        for role, ending in kind.roles.items():
            assert kinds.split_key(f"a.b{ending.native}") == ("a.b", role)
            assert kinds.native_suffix(role) == ending.native


def test_a_vector_reads_as_the_file_that_it_is_of():
    state = {f"unet.{Q}.lora_A.weight": torch.randn(2, 6), f"unet.{Q}.lora_B.weight": torch.randn(5, 2)}
    file = LoRAFile.of(state)
    assert torch.equal(file.vector().delta(f"unet.{Q}"), LoRAVector.from_state_dict(state).delta(f"unet.{Q}"))
    assert torch.equal(file.vector().delta(f"unet.{Q}"), LoRAFile.of(file.native()).vector().delta(f"unet.{Q}"))
