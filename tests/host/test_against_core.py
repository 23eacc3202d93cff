"""The node's picture is the paper's: the same seed through lcm_core alone, on the pocket UNet at its own width."""

import numpy as np
import torch

from benchmarks.few_step_quality import denoiser, merged
from lcm_core.consistency import consistency_function, multistep_sample
from lcm_core.lora import LoRAVector
from lcm_core.noise import step_noise
from lcm_core.schedule import lcm_timesteps
from pocket import autoencoder, lcm, teacher


@torch.no_grad()
def test_node_equals_lcm_core(workflow, host):
    graph = workflow("lcm_lora_txt2img")
    pictures = np.stack(host.images(host.queue(graph)))

    sampler, prompt, latent = graph["6"]["inputs"], graph["3"]["inputs"]["text"], graph["5"]["inputs"]
    unet, words = teacher.load_teacher()
    unet = merged(unet, LoRAVector.load(lcm.WEIGHTS))
    shape = (latent["batch_size"], 4, latent["height"] // 8, latent["width"] // 8)
    timesteps = lcm_timesteps(sampler["steps"])
    predict = denoiser(unet, words, [prompt] * shape[0], 1.0)
    z = multistep_sample(
        lambda x, t: consistency_function(predict(x, t), x, t, teacher.SCHEDULE),
        torch.randn(shape, generator=torch.Generator().manual_seed(sampler["seed"])),
        timesteps,
        teacher.SCHEDULE.process,
        noise=lambda i: step_noise(shape, sampler["seed"], 100 * (timesteps[i + 1] + 1)),
    )
    _, decode = autoencoder.load_autoencoder()
    expected = decode(z).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(pictures - expected).mean() < 1.5
