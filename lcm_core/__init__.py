"""The mathematics of LCM-LoRA: consistency sampling, LoRA vectors and their distillation. Knows nothing of a host."""

from importlib import import_module
from typing import Any

# Imported when first used, so that the command line answers --help without torch.
_HOME = {
    "Flow": "schedule",
    "FlowSchedule": "schedule",
    "NoiseSchedule": "schedule",
    "boundary_scalings": "consistency",
    "consistency_function": "consistency",
    "ddim_sample": "solvers",
    "ddim_step": "solvers",
    "dpmpp_2m_sample": "solvers",
    "guidance_embedding": "guidance",
    "guided": "guidance",
    "lcm_timesteps": "schedule",
    "multistep_sample": "consistency",
    "predict_noise": "consistency",
    "predict_x0": "consistency",
    "step_noise": "noise",
    "trailing_timesteps": "schedule",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
