"""The templates of workflows/: what each graph is, and what its note says. tools/make.py writes the files."""

from .accelerators import flux_turbo, qwen_image_lightning, sdxl_accelerators, wan22_lightning
from .pocket import frames, image_to_image, inpainting, text_to_image
from .released import full_lcm, sdxl
from .training import distil_your_own
from .vectors import lambda_grid, style_mix, vector_surgery

TEMPLATES = [
    text_to_image(), image_to_image(), inpainting(), style_mix(), lambda_grid(), sdxl(), full_lcm(), vector_surgery(),
    distil_your_own(), frames(), sdxl_accelerators(), flux_turbo(), qwen_image_lightning(), wan22_lightning(),
]  # fmt: skip
