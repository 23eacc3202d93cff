"""Latent consistency distillation: what is trained in a model, the objectives, the trainer, and its data."""

from ..solvers import ddim, dpmpp_2s, heun
from .adapters import FLOW_TARGETS, LCM_TARGETS, FullWeights, LoRAAdapter, checkpointed, inject_lora
from .config import DistillConfig
from .data import Examples, sample_latents
from .distances import cauchy, huber, huber_norm
from .losses import Draw, Problem, draw_sigmas, draw_timesteps
from .objective import Objective
from .objectives import OBJECTIVES
from .objectives.lcd import lcd_loss
from .objectives.lcf import lcf_loss
from .trainer import Progress, distill

__all__ = [
    "FLOW_TARGETS",
    "LCM_TARGETS",
    "OBJECTIVES",
    "DistillConfig",
    "Draw",
    "Examples",
    "FullWeights",
    "LoRAAdapter",
    "Objective",
    "Problem",
    "Progress",
    "cauchy",
    "checkpointed",
    "ddim",
    "distill",
    "dpmpp_2s",
    "draw_sigmas",
    "draw_timesteps",
    "heun",
    "huber",
    "huber_norm",
    "inject_lora",
    "lcd_loss",
    "lcf_loss",
    "sample_latents",
]
