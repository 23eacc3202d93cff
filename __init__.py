"""LCM-LoRA for ComfyUI: few-step consistency sampling and arithmetic on LoRA vectors."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"  # help pages

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
