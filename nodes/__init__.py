from comfy_api.latest import ComfyExtension, io

from .checks import checked
from .combine import Arithmetic, Combine, Expression
from .distillation import Distill, Finetune
from .hooks import VectorToHooks
from .host.lora_files import remove_leftovers
from .host.report import heard
from .loading import LoadLCMLoRA
from .sampling import (
    ConsistencyModelSampling,
    ConsistencySamplerSelect,
    FullLCMGuidance,
    LCMSampler,
    LCMSchedule,
    StreamBatch,
)
from .surgery import BlockWeights, Compare, Compress, Extract, Inspect
from .sweeps import Sweep, SweepGrid
from .vectors import ApplyVector, LoadVector, SaveVector

NODES: list[type[io.ComfyNode]] = [
    heard(checked(node))
    for node in (
        LCMSampler,
        LoadLCMLoRA,
        FullLCMGuidance,
        StreamBatch,
        ConsistencySamplerSelect,
        LCMSchedule,
        ConsistencyModelSampling,
        LoadVector,
        ApplyVector,
        VectorToHooks,
        Arithmetic,
        Expression,
        Combine,
        Compress,
        Extract,
        BlockWeights,
        Compare,
        Inspect,
        Sweep,
        SweepGrid,
        SaveVector,
        Distill,
        Finetune,
    )
]


class LCMLoRAExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LCMLoRAExtension:
    remove_leftovers()
    return LCMLoRAExtension()
