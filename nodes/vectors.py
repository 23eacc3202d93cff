"""LoRA vectors: load, apply, add with weights, save. LORA_MODEL is the host's dict of tensors."""

import torch
from comfy_api.latest import io

from ..lcm_core.lora import LoRAVector
from . import host

CATEGORY = "LCM-LoRA/vectors"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def weight_input(name: str, default: float, tooltip: str):
    return io.Float.Input(name, default=default, min=-10.0, max=10.0, step=0.01, tooltip=tooltip)


class LoadVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_LoadVector",
            display_name="Load LoRA Vector",
            category=CATEGORY,
            description="Reads a LoRA file of any dialect as a vector for arithmetic, without applying it.",
            inputs=[io.Combo.Input("lora_name", options=host.lora_files(), tooltip="A LoRA of models/loras.")],
            outputs=[io.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def execute(cls, lora_name):
        return io.NodeOutput(host.load_vector(lora_name).state_dict("native"))


class ApplyVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_ApplyVector",
            display_name="Apply LoRA Vector",
            category=CATEGORY,
            description="θ' = θ + strength·τ. Does not touch the model's sampling: use LCM Sampler after it.",
            inputs=[
                io.Model.Input("model", tooltip="The model to add the vector to; a clone is patched."),
                io.LoraModel.Input("lora", tooltip="A vector from Load LoRA Vector, arithmetic or a trainer."),
                weight_input("strength", 1.0, "How much of the vector to add; negative takes it away."),
            ],
            outputs=[io.Model.Output(display_name="model"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, model, lora, strength):
        return io.NodeOutput(*host.apply_vector(model, LoRAVector.from_state_dict(lora), strength))


class Arithmetic(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Arithmetic",
            display_name="LoRA Vector Arithmetic",
            category=CATEGORY,
            description="τ' = λ₁·a + λ₂·b (+ λ₃·c), exact for any ranks and alphas. The paper's style mix is "
            "0.8·style + 1.0·LCM.",
            inputs=[
                io.LoraModel.Input("a", tooltip="The first vector, the style in the paper's mix."),
                weight_input("lambda_1", 0.8, "λ₁, the weight of a."),
                io.LoraModel.Input("b", tooltip="The second vector, the LCM-LoRA in the paper's mix."),
                weight_input("lambda_2", 1.0, "λ₂, the weight of b."),
                io.LoraModel.Input("c", optional=True, tooltip="A third vector, if there is one."),
                weight_input("lambda_3", 0.0, "λ₃, the weight of c; unused without c."),
            ],
            outputs=[io.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def execute(cls, a, lambda_1, b, lambda_2, lambda_3, c=None):
        host.check_finite(lambda_1=lambda_1, lambda_2=lambda_2, lambda_3=lambda_3)
        terms = [(a, lambda_1), (b, lambda_2)] + ([(c, lambda_3)] if c is not None else [])
        total = sum((weight * LoRAVector.from_state_dict(lora) for lora, weight in terms), LoRAVector())
        return io.NodeOutput(total.state_dict("native"))


class SaveVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_SaveVector",
            display_name="Save LoRA Vector",
            category=CATEGORY,
            description="Writes a vector as a .safetensors LoRA into output/loras, where LoRA loaders find it.",
            inputs=[
                io.LoraModel.Input("lora", tooltip="The vector to save."),
                io.String.Input("filename_prefix", default="loras/lcm_mix", tooltip="Folder and name below output."),
                io.Combo.Input("dialect", options=["kohya", "peft", "native"], default="kohya",
                               tooltip="kohya is read by ComfyUI, A1111 and Forge; peft by diffusers."),
                io.Combo.Input("dtype", options=list(DTYPES), default="float16",
                               tooltip="Precision of the file; float16 is usual."),
            ],
            outputs=[],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, lora, filename_prefix, dialect, dtype):
        path = host.save_path(filename_prefix)
        LoRAVector.from_state_dict(lora).save(path, dialect=dialect, dtype=DTYPES[dtype])
        return io.NodeOutput(ui={"text": [path]})
