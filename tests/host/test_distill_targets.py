"""The LoRA targets of distillation on the host's own UNets: as many modules and parameters as in diffusers' UNets."""

import json
import os
import subprocess
from pathlib import Path

from tools.host_process import clean_environment

ROOT = Path(__file__).resolve().parents[2]
COUNT = """
import json, sys
from tests.host.architectures import UNETS
sys.path.append(sys.argv[1])
import comfy.options
from comfy.cli_args import args
args.cpu = True
import comfy.ops, torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from lcm_core.distill import inject_lora
counts = {}
for family, levels in (("sd15", [1, 2, 4, 4]), ("ssd1b", [1, 2, 4]), ("sdxl", [1, 2, 4])):
    config = UNETS[family] | {"channel_mult": levels, "device": "meta", "dtype": torch.float16}
    adapter = inject_lora(UNetModel(**config, operations=comfy.ops.disable_weight_init), rank=64)
    counts[family] = [len(adapter.names), sum(p.numel() for p in adapter.parameters())]
print(json.dumps(counts))
"""


def test_the_hosts_unets_have_the_papers_parameters():
    command = [os.environ["LCM_HOST_PYTHON"], "-c", COUNT, os.environ["LCM_HOST_DIR"]]
    run = subprocess.run(command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-4000:]
    counts = json.loads(run.stdout.splitlines()[-1])
    assert counts == {"sd15": [278, 67_252_224], "ssd1b": [423, 104_902_656], "sdxl": [788, 196_751_360]}
