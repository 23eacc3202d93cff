"""LoRA vectors as hooks: for a part of the picture, or with a strength that changes over the steps."""

from comfy_api.latest import io

from ..lcm_core.strengths import parse_strengths, step_factors
from .host.hooks import StepStrength, vector_hooks
from .inputs import CATEGORY, aliases, vector_input, weight_input


class VectorToHooks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Hooks",
            display_name="LoRA Vector to Hooks",
            category=CATEGORY,
            description="A vector for some steps, or for a part of the picture: τ as hooks, for core's Cond Pair Set "
            "Props, Cond Set Props or Set CLIP Hooks. The model itself stays as it is.",
            **aliases("lora schedule", "regional lora", "lora per step"),
            inputs=[
                vector_input("lora", "A vector from Load LoRA Vector, arithmetic or a trainer."),
                weight_input("strength", 1.0, "How much of the vector to add; the schedule multiplies it."),
                io.String.Input("schedule", default="", multiline=True, optional=True,
                                tooltip="What strength is multiplied by, and from when: step 1: 0, step 2: 1 or, in "
                                "shares of the steps, 0: 0, 0.25: 1. Each holds until the next. Empty: 1 throughout."),
                io.Combo.Input("applied_to", options=["weights", "activations"], default="weights", optional=True,
                               tooltip="weights: patched anew where the strength changes, as core's hooks do. "
                               "activations: added beside each layer, no weight is touched and a change is free, but "
                               "each evaluation takes longer; for vectors alone."),
                io.Sigmas.Input("sigmas", optional=True,
                                tooltip="All sigmas of the run, where samplers make it in parts: steps are then "
                                "counted over all parts. Else each sampler's own count."),
                io.Hooks.Input("prev_hooks", optional=True, tooltip="Other hooks, to which these are added."),
            ],
            outputs=[io.Hooks.Output(display_name="hooks")],
        )  # fmt: skip

    @classmethod
    def execute(cls, lora, strength, schedule="", applied_to="weights", sigmas=None, prev_hooks=None):
        changes, levels = parse_strengths(schedule), () if sigmas is None else tuple(sigmas.tolist())
        if sigmas is not None:
            if len(levels) < 2:
                raise ValueError(f"sigmas has {len(levels)} of the 2 levels that a step has; connect a scheduler's")
            step_factors(changes, len(levels) - 1)
        when = StepStrength(changes, levels) if changes else None
        hooks = vector_hooks(lora, strength, when, applied_to == "activations")
        return io.NodeOutput(hooks if prev_hooks is None else prev_hooks.clone_and_combine(hooks))
