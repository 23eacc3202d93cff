"""Latent consistency distillation: what is trained in a model, the objectives, the trainer, and its data."""

from typing import Any

from ..lazy import imported

# Imported when first used: a host that only lists the objectives and their options waits for no trainer.
_HOME = {
    "FLOW_TARGETS": "adapters",
    "LCM_TARGETS": "adapters",
    "OBJECTIVES": "objectives",
    "DistillConfig": "config",
    "Draw": "losses",
    "Examples": "data",
    "FullWeights": "adapters",
    "LoRAAdapter": "adapters",
    "Objective": "objective",
    "Problem": "losses",
    "Progress": "trainer",
    "cauchy": "distances",
    "checkpointed": "adapters",
    "ddim": ".solvers",
    "distill": "trainer",
    "dpmpp_2s": ".solvers",
    "draw_sigmas": "losses",
    "draw_timesteps": "losses",
    "heun": ".solvers",
    "huber": "distances",
    "huber_norm": "distances",
    "inject_lora": "adapters",
    "lcd_loss": "objectives.lcd",
    "lcf_loss": "objectives.lcf",
    "sample_latents": "data",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    return imported(__name__, _HOME, name)
