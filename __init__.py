"""LCM-LoRA for ComfyUI: few-step consistency sampling and arithmetic on LoRA vectors."""

from .nodes import comfy_entrypoint

__all__ = ["comfy_entrypoint"]
