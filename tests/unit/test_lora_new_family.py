"""The example of docs/architectures.md, a new family of networks in one new file, read, summed and saved."""

import re
import sys
from pathlib import Path

import torch

from lcm_core.lora import LoRAVector, block_norms, names
from lcm_core.lora.names import read_name, table, writing
from lcm_core.lora.names.table import canonical_paths

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"^```python\n(.*?)^```", DOCUMENT, re.M | re.S)[1]


def test_the_document_s_new_family_is_one_new_file(tmp_path, monkeypatch):
    """The file of docs/architectures.md in the package: its spellings are read, summed, grouped and saved."""
    (tmp_path / "octo.py").write_text(EXAMPLE, encoding="utf-8")
    monkeypatch.setattr(names, "__path__", [*names.__path__, str(tmp_path)])
    caches = (table.families, table._table, table._spellings, canonical_paths, read_name, writing._readings)
    for cached in caches:
        cached.cache_clear()
    try:
        down, up = torch.randn(2, 4), torch.randn(12, 2)
        fused = {"lora_unet_octo_blocks_3_arm_qkv.lora_down.weight": down}
        fused["lora_unet_octo_blocks_3_arm_qkv.lora_up.weight"] = up
        split = {}
        for part, rows in zip(("to_q", "to_k", "to_v"), up.split(4), strict=True):
            split[f"transformer.transformer_blocks.3.arm.{part}.lora_A.weight"] = down
            split[f"transformer.transformer_blocks.3.arm.{part}.lora_B.weight"] = rows
        old = {"octo.3.old_out.lora_A.weight": down, "octo.3.old_out.lora_B.weight": up[:4]}
        total = LoRAVector.from_state_dict(fused) + LoRAVector.from_state_dict(split) + LoRAVector.from_state_dict(old)
        assert set(block_norms(total)) == {"octo_blocks.3"}
        saved = total.state_dict("kohya")
        modules = {f"lora_unet_octo_blocks_3_arm_{leaf}" for leaf in ("qkv", "out")}
        assert {key.partition(".")[0] for key in saved} == modules
        whole = LoRAVector.from_state_dict(saved)
        for i, part in enumerate(("to_q", "to_k", "to_v")):
            delta = whole.delta(f"transformer.transformer_blocks.3.arm.{part}")
            torch.testing.assert_close(delta, 2 * (up @ down)[4 * i : 4 * i + 4])
    finally:
        monkeypatch.undo()
        for cached in caches:
            cached.cache_clear()
        sys.modules.pop("lcm_core.lora.names.octo", None)
    assert not canonical_paths("octo_blocks.3.arm.qkv")
