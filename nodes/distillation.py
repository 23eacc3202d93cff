"""Distillation: acceleration vectors made in ComfyUI, from a teacher (LCD) or from data alone (LCF)."""

from comfy_api.latest import io

from ..lcm_core.distill import OBJECTIVES
from ..lcm_core.distill.objective import all_options, users_of
from ..lcm_core.lora.sampling import distilled
from ..lcm_core.solvers import SOLVERS
from . import plotting
from .host import lora_model
from .inputs import aliases, expert, option_input

CATEGORY = "LCM-LoRA/distillation"
SETTINGS = [
    io.Int.Input("steps", default=1000, min=1, max=1_000_000,
                 tooltip="Training steps. Hundreds show an effect, the released LCM-LoRAs took thousands."),
    io.Float.Input("learning_rate", default=1e-4, min=1e-6, max=0.01, step=1e-6, round=1e-7,
                   tooltip="Of AdamW. Lower it if the loss rises or the pictures burn."),
    io.Int.Input("rank", default=64, min=1, max=512,
                 tooltip="Rank of the LoRA, 64 in the paper. Layers too small for it get the most that they can have."),
    io.Int.Input("batch_size", default=4, min=1, max=256, tooltip="Latents of a step."),
    io.Int.Input("seed", default=0, min=0, max=2**32 - 1, control_after_generate=False,
                 tooltip="Fixes everything random in the training."),
]  # fmt: skip
WORK = [
    io.Boolean.Input("gradient_checkpointing", default=False,
                     tooltip="Saves memory for about a third more time."),
    io.Combo.Input("precision", options=["model", "bfloat16", "float16"], default="model",
                   tooltip="Of the matrix products; bfloat16 saves memory and time on most GPUs."),
    io.Int.Input("save_every", default=100, min=1, max=100_000,
                 tooltip="The training's state is written every so many steps, and when you interrupt."),
    io.String.Input("state_prefix", default="lcm_training/state",
                    tooltip="Where the state is kept, below the output folder: the same training goes on from there. "
                    "Another model, data or setting has another state; delete those you don't need. Empty: none."),
    io.Int.Input("preview_every", default=50, min=0, max=100_000,
                 tooltip="Every so many steps a picture of the first prompt in 4 steps. 0: never."),
]  # fmt: skip
OUTPUTS = [
    io.LoraModel.Output(display_name="lora"),
    io.Image.Output(display_name="loss"),
    io.String.Output(display_name="report"),
]


def train(settings: dict, model, positive, latents, negative=None, **config):
    """What both nodes do with their inputs, each a list."""
    from ..lcm_core.distill import DistillConfig
    from .host import training

    given = {name: values[0] for name, values in settings.items()}
    precision = given["precision"]
    config |= {name: given[name] for name in ("steps", "learning_rate", "seed", "save_every")}
    vector, losses, report = training.learn(
        model[0], latents, positive, negative[0] if negative else None,
        DistillConfig(autocast=None if precision == "model" else precision, **config),
        rank=given["rank"], batch_size=given["batch_size"], checkpointing=given["gradient_checkpointing"],
        prefix=given["state_prefix"], preview_every=given["preview_every"],
    )  # fmt: skip
    gamma = OBJECTIVES[config["objective"]].gamma
    if gamma is not None:
        vector = distilled(vector, config["links"], gamma)
    return io.NodeOutput(lora_model.LoRATensors(vector, {}), plotting.loss_curve(losses), report)


def objectives_tooltip() -> str:
    return " ".join(f"{name}: {o.about}" for name, o in OBJECTIVES.items() if o.teacher)


class Distill(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Distill",
            display_name="Distil LCM-LoRA",
            category=CATEGORY,
            description="Makes an acceleration vector τ_LCM for any model: L = d(f_θ(x_t+k), f_θ⁻(x̂_t)), x̂_t being one "
            "guided solver step of the model itself (latent consistency distillation). Training, of diffusion and "
            "flow models.",
            **aliases("train lcm", "make acceleration lora", "lcd"),
            inputs=[
                io.Model.Input("model", tooltip="The teacher, before any LCM node. It is left as it is."),
                io.Conditioning.Input("positive", tooltip="A prompt for each latent, as a list, or one for all."),
                io.Latent.Input("latents", tooltip="Encoded pictures, a batch or a list, also of several sizes."),
                *SETTINGS,
                io.Float.Input("omega_min", default=5.0, min=0.0, max=30.0, step=0.05,
                               tooltip="The least guidance ω to learn; the model's cfg is ω + 1."),
                io.Float.Input("omega_max", default=15.0, min=0.0, max=30.0, step=0.05, tooltip="The most guidance ω."),
                io.Int.Input("links", default=50, min=1, max=1000,
                             tooltip="Points of the timestep grid, LCM Sampler's original_steps. Few need less "
                             "training, 50 is the paper's."),
                io.Combo.Input("solver", options=list(SOLVERS), default="ddim",
                               tooltip="The teacher's step Ψ, of a flow model Euler's. dpm++ and, for flow models, "
                               "heun are more exact and take twice its time."),
                *map(expert, WORK),
                io.Conditioning.Input("negative", optional=True,
                                      tooltip="The empty prompt, but for SDXL: without it zeros. A Flux model with its "
                                      "own guidance needs none, with omega 0."),
                io.Combo.Input("objective", options=[name for name, o in OBJECTIVES.items() if o.teacher],
                               default="lcd", optional=True, tooltip=objectives_tooltip()),
                io.Int.Input("warm_start", default=0, min=0, max=1_000_000, optional=True,
                             tooltip="So many of the first steps only regress the guided prediction."),
                *(option_input(name, option, default, users_of(name), True)
                  for name, (option, default) in all_options().items()
                  if any(OBJECTIVES[user].teacher for user in users_of(name))),
            ],
            outputs=OUTPUTS,
            is_input_list=True,
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, latents, omega_min, omega_max, links, solver, negative=None, objective=("lcd",),
        warm_start=(0,), **settings,
    ):  # fmt: skip
        known = OBJECTIVES[objective[0]].options
        return train(
            settings, model, positive, latents, negative, omega=(omega_min[0], omega_max[0]), links=links[0],
            solver=solver[0], objective=objective[0], warm_start=warm_start[0],
            options={name: settings[name][0] for name in known if name in settings},
        )  # fmt: skip


class Finetune(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Finetune",
            display_name="Fine-tune LCM",
            category=CATEGORY,
            description="Teaches an LCM your pictures without a teacher: L = d(f_θ(x_t+k), f_θ⁻(x_t)) with one noise "
            "for both (latent consistency fine-tuning). Training, LCF.",
            **aliases("train lcm", "lcf"),
            inputs=[
                io.Model.Input("model", tooltip="A full LCM, or a model with an LCM-LoRA by Apply LoRA Vector."),
                io.Conditioning.Input("positive", tooltip="A prompt for each latent, as a list, or one for all."),
                io.Latent.Input("latents", tooltip="Encoded pictures, a batch or a list, also of several sizes."),
                *SETTINGS,
                io.Int.Input("links", default=50, min=1, max=1000, tooltip="Points of the timestep grid."),
                *map(expert, WORK),
            ],
            outputs=OUTPUTS,
            is_input_list=True,
        )

    @classmethod
    def execute(cls, model, positive, latents, links, **settings):
        return train(settings, model, positive, latents, links=links[0], objective="lcf")
