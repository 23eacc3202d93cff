"""The templates of workflows/: what each graph is, and what its note says. tools/make.py writes the files.

Most are described for two settings: a released model's, which ships, and the pocket model's, which the demo, `run.py
serve` and the tests use.
"""

from .accelerators import flux_turbo, qwen_image_lightning, sdxl_accelerators, wan22_lightning
from .common import for_pocket, for_released
from .pictures import frames, image_to_image, inpainting, many_steps_and_few, text_to_image
from .released import full_lcm, sdxl
from .training import distil_from_folder, distil_your_own
from .vectors import comparison, lambda_grid, style_mix, vector_surgery

BOTH = [
    text_to_image, many_steps_and_few, image_to_image, inpainting, style_mix, lambda_grid, sdxl, full_lcm,
    vector_surgery, comparison, distil_your_own, distil_from_folder, frames, sdxl_accelerators,
]  # fmt: skip
TEMPLATES = [
    *(describe(for_released) for describe in BOTH), flux_turbo(), qwen_image_lightning(), wan22_lightning(),
]  # fmt: skip
ON_POCKET = {template.name: template for template in (describe(for_pocket) for describe in BOTH)}
