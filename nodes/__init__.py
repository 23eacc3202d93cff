from comfy_api.latest import ComfyExtension, io

from .loading import LoadLCMLoRA
from .sampling import (
    ConsistencyModelSampling,
    ConsistencySamplerSelect,
    FullLCMGuidance,
    LCMSampler,
    LCMSchedule,
    StreamBatch,
)
from .vectors import ApplyVector, Arithmetic, LoadVector, SaveVector

NODES: list[type[io.ComfyNode]] = [
    LCMSampler,
    LoadLCMLoRA,
    FullLCMGuidance,
    StreamBatch,
    ConsistencySamplerSelect,
    LCMSchedule,
    ConsistencyModelSampling,
    LoadVector,
    ApplyVector,
    Arithmetic,
    SaveVector,
]


class LCMLoRAExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> LCMLoRAExtension:
    return LCMLoRAExtension()
