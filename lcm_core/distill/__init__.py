"""Latent consistency distillation: LoRA adapters on any torch module, the LCD and LCF losses, and the trainer."""

from .adapters import LoRAAdapter, inject_lora
from .losses import draw_timesteps, huber, lcd_loss, lcf_loss
from .trainer import DistillConfig, Progress, distill

__all__ = [
    "DistillConfig",
    "LoRAAdapter",
    "Progress",
    "distill",
    "draw_timesteps",
    "huber",
    "inject_lora",
    "lcd_loss",
    "lcf_loss",
]
