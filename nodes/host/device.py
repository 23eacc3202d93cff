"""Where the host computes."""

import comfy.model_management
import torch


def decomposition_device() -> torch.device:
    """The host's device if it is a GPU with float64, else the CPU."""
    device = comfy.model_management.get_torch_device()
    return device if device.type == "cuda" else torch.device("cpu")
