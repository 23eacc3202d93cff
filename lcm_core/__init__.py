"""The mathematics of LCM-LoRA: consistency sampling, LoRA vectors and their distillation. Knows nothing of a host."""

from typing import Any

from .lazy import imported

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
    return imported(__name__, _HOME, name)
