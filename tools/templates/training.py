"""An LCM-LoRA made in ComfyUI."""

from __future__ import annotations

from .common import POCKET, SIZE, prompts, sampled
from .graph import Graph, Template


def distil_your_own() -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=POCKET)
    texts = prompts(graph, base[1], "animal")
    many = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=8)
    data = graph.add(
        "KSampler", "The data: pictures of the teacher", model=base, positive=texts[0], negative=texts[1],
        latent_image=many, seed=1, steps=12, cfg=1.0, sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    learnt = graph.add(
        "LCMLoRA_Distill", model=base, positive=texts[0], negative=texts[1], latents=data, steps=40, seed=1,
        batch_size=2, learning_rate=1e-3, rank=32, omega_min=1.0, omega_max=2.0, links=8,
        preview_every=20, state_prefix="lcm_training/pocket",
    )  # fmt: skip
    report = graph.add("PreviewAny", "What was learnt", source=learnt[2])
    loss = graph.add("PreviewImage", "Loss", images=learnt[1])
    saved = graph.add("LCMLoRA_SaveVector", lora=learnt, filename_prefix="loras/my_lcm")
    fast = graph.add("LCMLoRA_ApplyVector", model=base, lora=learnt)
    four = graph.add("EmptyLatentImage", width=SIZE, height=SIZE, batch_size=4)
    samplers, pictures = zip(
        *(
            sampled(graph, model, texts, four, base[2], steps=2, original_steps=8, seed=10) for model in (base, fast)
        ), strict=True
    )  # fmt: skip
    before = graph.add("SaveImage", "2 steps of the teacher", images=pictures[0], filename_prefix="before_distillation")
    after = graph.add("SaveImage", "2 steps with the new LCM-LoRA", images=pictures[1], filename_prefix="my_lcm")
    note = """## Distil an LCM-LoRA, and use it

**Distil LCM-LoRA** makes an acceleration vector for a model from the model alone: the teacher draws 8 pictures, and
40 steps of latent consistency distillation teach a LoRA to reach its results from anywhere on the way to them. With
one seed you see two steps without and with it. It takes a minute on a CPU, and only animals were taught.

The training's state is kept in output/lcm_training: raise steps and run again, and it goes on. The LoRA is saved into
output/loras."""
    own = """### For a model of your own

Choose the checkpoint and its size, encode your pictures (Load Image → VAE Encode) in place of KSampler, with a prompt
for each (Conditioning Combine, in the same order). Then rank 64, links 50, learning_rate 0.0001, ω 5 to 15,
original_steps 50, batch_size 4 or more, and thousands of steps: a GPU's work of hours."""
    return Template(
        "distil_your_own", graph, [(note, 3), (own, 2)],
        [[("Model: the teacher", [base]), ("Prompt", texts), ("Picture: the data", [data])],
         [("Sampling: before", [samplers[0]]), ("Picture: of the data", [many])],
         [("LoRA vectors: distil", [learnt])],
         [("LoRA vectors: what was learnt", [report, loss, saved]), ("Model: θ + τ", [fast])],
         [("Sampling: after", [samplers[1]]), ("Picture", [four])],
         [("Result", [*pictures, before, after])]],
        trains=True,
    )  # fmt: skip
