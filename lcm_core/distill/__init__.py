"""Latent consistency distillation: what is trained in a model, the LCD and LCF losses, the trainer, and its data."""

from .adapters import LCM_TARGETS, FullWeights, LoRAAdapter, checkpointed, inject_lora
from .config import DistillConfig
from .data import Examples, sample_latents
from .losses import Draw, ddim, dpmpp_2s, draw_timesteps, huber, lcd_loss, lcf_loss
from .trainer import Progress, distill

__all__ = [
    "LCM_TARGETS",
    "DistillConfig",
    "Draw",
    "Examples",
    "FullWeights",
    "LoRAAdapter",
    "Progress",
    "checkpointed",
    "ddim",
    "distill",
    "dpmpp_2s",
    "draw_timesteps",
    "huber",
    "inject_lora",
    "lcd_loss",
    "lcf_loss",
    "sample_latents",
]
