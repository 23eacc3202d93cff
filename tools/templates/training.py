"""An LCM-LoRA made in ComfyUI: from the model alone, and from a folder of pictures."""

from __future__ import annotations

from .common import POCKET, SD15, SIZE, Setting, empty, prompts, sampled
from .graph import Graph, Node, Output, Template
from .models import downloads

SCALE = f"""### What it takes

{downloads(SD15)}

Some thousands of steps of batch 4 or more, on a GPU: hours for Stable Diffusion 1.5. Hundreds show an effect. The
state of the training is kept in output/lcm_training: raise steps and run again, and it goes on. **Distil LCM-LoRA**
draws a picture every preview_every steps. With too little memory switch gradient_checkpointing on."""
EMPTY = "The empty prompt"
SMALL = """### On the pocket model

It takes a minute on a CPU. The state of the training is kept in output/lcm_training: raise steps and run again, and it
goes on."""


def settings(on: Setting) -> dict[str, int | float]:
    """Of the training: the paper's, and what the pocket model learns from in a minute."""
    return {
        "steps": on(1000, 40), "batch_size": on(4, 2), "learning_rate": on(1e-4, 1e-3), "rank": on(64, 32),
        "omega_min": on(5.0, 1.0), "omega_max": on(15.0, 2.0), "links": on(50, 8), "preview_every": on(50, 20),
    }  # fmt: skip


def taught(graph: Graph, on: Setting, **models: Output) -> tuple[Node, Node, Node, Node]:
    """(a folder of pictures with texts, scaled, cut, encoded); models: vae and clip"""
    size = on(512, SIZE)
    folder = graph.add(
        "LoadImageTextDataSetFromFolder", "Pictures and their texts", folder=on("my_pictures", "pocket_pictures")
    )  # fmt: skip
    scaled = graph.add("ResizeImagesByShorterEdge", "The model's size", images=folder, shorter_edge=size)
    cut = graph.add("CenterCropImages", "Square", images=scaled, width=size, height=size)
    return folder, scaled, cut, graph.add("MakeTrainingDataset", images=cut, texts=folder[1], **models)


def tried(
    graph: Graph, on: Setting, base: Node, texts: tuple[Node, Node], learnt: Node, prefix: str
) -> tuple[Node, Node, Node, Node, Node, Node]:
    """What was learned, saved and tried: (Save LoRA Vector, Apply, the latent, LCM Sampler, VAE Decode, Save Image)."""
    saved = graph.add("LCMLoRA_SaveVector", lora=learnt, filename_prefix=f"loras/{prefix}")
    fast = graph.add("LCMLoRA_ApplyVector", model=base, lora=learnt)
    latent = empty(graph, on(512, SIZE), 4)
    sampler, picture = sampled(
        graph, fast, texts, latent, base[2], steps=on(4, 2), original_steps=on(50, 8), seed=10
    )  # fmt: skip
    return saved, fast, latent, sampler, picture, graph.add("SaveImage", images=picture, filename_prefix=prefix)


def distil_your_own(on: Setting) -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=on(SD15, POCKET))
    texts = prompts(graph, base[1], on("photo of an animal", "animal"), EMPTY)
    many = empty(graph, on(512, SIZE), on(16, 8))
    data = graph.add(
        "KSampler", "The data: pictures of the teacher", model=base, positive=texts[0], negative=texts[1],
        latent_image=many, seed=1, steps=on(25, 12), cfg=on(7.5, 1.0), sampler_name="dpmpp_2m", scheduler="karras",
    )  # fmt: skip
    learnt = graph.add(
        "LCMLoRA_Distill", model=base, positive=texts[0], negative=texts[1], latents=data, seed=1,
        state_prefix=on("lcm_training/my_lcm", "lcm_training/pocket"), **settings(on),
    )  # fmt: skip
    loss = graph.add("PreviewImage", "Loss", images=learnt[1])
    saved, fast, latent, sampler, picture, save = tried(graph, on, base, texts, learnt, "my_lcm")
    note = f"""## Distil an LCM-LoRA, and use it

**Distil LCM-LoRA** makes an acceleration vector for a model from the model alone: the teacher draws {on(16, 8)}
pictures, and {on(1000, 40)} steps of latent consistency distillation teach a LoRA to reach its results from anywhere on
the way to them. Only animals are taught. The LoRA is saved into output/loras. To see what it is good for, connect LCM
Sampler's model to Load Checkpoint and run again.

Pictures of your own are the better data: the template distil_from_folder."""
    return Template(
        "distil_your_own", graph, [(note, 3), (on(SCALE, SMALL), 2)],
        [[("Model: the teacher", [base]), ("Prompt", texts), ("Picture: the data", [data])],
         [("LoRA vectors: distil", [learnt])],
         [("LoRA vectors: what was learnt", [loss, saved]), ("Model: θ + τ", [fast])], [("Sampling", [sampler])],
         [("Picture: of the data", [many]), ("Picture: to try it", [latent]), ("Result", [picture, save])]],
        trains=True,
    )  # fmt: skip


def distil_from_folder(on: Setting) -> Template:
    graph = Graph()
    base = graph.add("CheckpointLoaderSimple", ckpt_name=on(SD15, POCKET))
    folder, scaled, cut, data = taught(graph, on, vae=base[2], clip=base[1])
    texts = prompts(graph, base[1], on("one of your texts", "panda"), EMPTY)
    learnt = graph.add(
        "LCMLoRA_Distill", model=base, positive=data[1], negative=texts[1], latents=data, seed=1,
        state_prefix=on("lcm_training/folder", "lcm_training/pocket_folder"), **settings(on),
    )  # fmt: skip
    report = graph.add("PreviewAny", "What was learnt", source=learnt[2])
    saved, fast, latent, sampler, picture, save = tried(graph, on, base, texts, learnt, "from_folder")
    own = on(
        """Make a folder in ComfyUI's input folder, such as input/my_pictures, put pictures in it and beside each its
text in a file of the same name (fox.png, fox.txt), reload the page and choose it.""",
        "The folder is input/pocket_pictures: eight pictures, and beside each its text in a file of the same name.",
    )
    note = f"""## Distil an LCM-LoRA from a folder

{own} ComfyUI's own nodes read the folder, scale and cut the pictures to the model's size, and encode each with its
text; **Distil LCM-LoRA** learns from them. A picture without a text is learned without one. Folders in it
named 3_fox count three times, as in sd-scripts.

The LoRA speeds the model up on what the pictures are like. It is saved into output/loras."""
    return Template(
        "distil_from_folder", graph, [(note, 3), (on(SCALE, SMALL), 2)],
        [[("Model: the teacher", [base]), ("Picture: the folder, encoded", [folder, scaled, cut, data]),
          ("Prompt: the empty one", texts[1:])],
         [("LoRA vectors: distil", [learnt])],
         [("LoRA vectors: what was learnt", [report, saved]), ("Model: θ + τ", [fast]), ("Prompt", texts[:1])],
         [("Sampling", [sampler])], [("Picture", [latent]), ("Result", [picture, save])]],
        trains=True,
    )  # fmt: skip
