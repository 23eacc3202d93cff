"""The blueprints of subgraphs/: graphs that users add as one node."""

from __future__ import annotations

from .common import LCM, PAPERCUT, SDXL_LCM, SIZE, STYLE, Setting, empty, sampled, sd15
from .graph import Blueprint, Graph
from .training import EMPTY, settings, taught


def four_steps(on: Setting) -> Blueprint:
    graph = Graph()
    base, fast, texts = sd15(graph, on, on("photo of a cat on a garden wall, evening light", "cat"))
    latent = empty(graph, on(512, SIZE))
    sampler, picture = sampled(graph, fast, texts, latent, base[2])
    return Blueprint(
        "4-step text to image", graph,
        {
            "prompt": [(texts[0], "text")], "checkpoint": [(base, "ckpt_name")], "lora": [(fast, "lora_name")],
            "width": [(latent, "width")], "height": [(latent, "height")], "batch_size": [(latent, "batch_size")],
            "steps": [(sampler, "steps")], "seed": [(sampler, "seed")],
        },
        {"IMAGE": picture[0]},
        [[("Model", [base, fast])], [("Prompt", texts), ("Picture", [latent])], [("Sampling", [sampler])],
         [("Result", [picture])]],
    )  # fmt: skip


def style_and_acceleration(on: Setting) -> Blueprint:
    graph = Graph()
    style = graph.add("LCMLoRA_LoadVector", "Style vector τ'", lora_name=on(PAPERCUT, STYLE))
    lcm = graph.add("LCMLoRA_LoadVector", "Acceleration vector τ_LCM", lora_name=on(SDXL_LCM, LCM))
    mix = graph.add("LCMLoRA_Arithmetic", a=style, b=lcm)
    model = graph.add("LCMLoRA_ApplyVector", lora=mix)
    return Blueprint(
        "Style + acceleration", graph,
        {
            "model": [(model, "model")], "style": [(style, "lora_name")], "acceleration": [(lcm, "lora_name")],
            "lambda_1": [(mix, "lambda_1")], "lambda_2": [(mix, "lambda_2")],
        },
        {"MODEL": model[0], "lora": mix[0]},
        [[("LoRA vectors", [style, lcm])], [("LoRA vectors: sum", [mix])], [("Model: θ + τ", [model])]],
    )  # fmt: skip


def distil_from_folder(on: Setting) -> Blueprint:
    graph = Graph()
    folder, scaled, cut, data = taught(graph, on)
    nothing = graph.add("CLIPTextEncode", EMPTY, text="")
    learnt = graph.add(
        "LCMLoRA_Distill", positive=data[1], negative=nothing, latents=data, seed=1,
        state_prefix=on("lcm_training/folder", "lcm_training/pocket_folder"), **settings(on),
    )  # fmt: skip
    fast = graph.add("LCMLoRA_ApplyVector", lora=learnt)
    names = ("steps", "batch_size", "learning_rate", "rank", "omega_min", "omega_max", "links", "state_prefix")
    return Blueprint(
        "Distil from a folder", graph,
        {
            "model": [(learnt, "model"), (fast, "model")], "clip": [(data, "clip"), (nothing, "clip")],
            "vae": [(data, "vae")], "folder": [(folder, "folder")],
            "size": [(scaled, "shorter_edge"), (cut, "width"), (cut, "height")],
            **{name: [(learnt, name)] for name in names},
        },
        {"MODEL": fast[0], "lora": learnt[0], "loss": learnt[1], "report": learnt[2]},
        [[("Picture: the folder", [folder, scaled, cut])], [("Picture: the data", [data]), ("Prompt", [nothing])],
         [("LoRA vectors: distil", [learnt])], [("Model: θ + τ", [fast])]],
    )  # fmt: skip


BLUEPRINTS = [four_steps, style_and_acceleration, distil_from_folder]
