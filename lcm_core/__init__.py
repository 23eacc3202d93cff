"""The mathematics of LCM-LoRA: consistency sampling, LoRA vectors and their distillation. Knows nothing of a host."""

from .consistency import boundary_scalings, consistency_function, multistep_sample, predict_noise, predict_x0
from .guidance import guidance_embedding, guided
from .noise import step_noise
from .schedule import NoiseSchedule, lcm_timesteps, trailing_timesteps
from .solvers import ddim_sample, ddim_step, dpmpp_2m_sample

__all__ = [
    "NoiseSchedule",
    "boundary_scalings",
    "consistency_function",
    "ddim_sample",
    "ddim_step",
    "dpmpp_2m_sample",
    "guidance_embedding",
    "guided",
    "lcm_timesteps",
    "multistep_sample",
    "predict_noise",
    "predict_x0",
    "step_noise",
    "trailing_timesteps",
]
