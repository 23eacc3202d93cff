"""LoRA vectors: load, apply, save. LORA_MODEL is the host's dict of tensors."""

import torch
from comfy_api.latest import io

from ..lcm_core.dialects import DIALECTS, DTYPES
from .acceleration import with_vectors_recipe
from .host import lora_files, lora_model, loras
from .host.files import stamp
from .host.report import Said, tell
from .inputs import CATEGORY, LEAVE_OUT, aliases, expert, vector_input, weight_input


class LoadVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_LoadVector",
            display_name="Load LoRA Vector",
            category=CATEGORY,
            description="Reads a LoRA file of any dialect as a vector τ for arithmetic, without applying it.",
            **aliases("lora file", "open lora"),
            inputs=[io.Combo.Input("lora_name", options=lora_files.lora_files(), tooltip="A LoRA of models/loras.")],
            outputs=[io.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name):
        return stamp(map(lora_files.lora_path, [lora_name] if lora_name else lora_files.lora_files()))

    @classmethod
    def execute(cls, lora_name):
        return io.NodeOutput(lora_files.load_vector(lora_name))


class ApplyVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_ApplyVector",
            display_name="Apply LoRA Vector",
            category=CATEGORY,
            description="θ' = θ + strength·τ. Does not touch the model's sampling: use LCM Sampler after it, which "
            "follows the recipe of an accelerator in the vector.",
            **aliases("lora to model", "load lora"),
            inputs=[
                io.Model.Input("model", tooltip="The model to add the vector to; a clone is patched."),
                vector_input("lora", "A vector from Load LoRA Vector, arithmetic or a trainer."),
                weight_input("strength", 1.0, "How much of the vector to add; negative takes it away."),
                io.Clip.Input("clip", optional=True, tooltip="For a LoRA that changes the text encoder too."),
                expert(LEAVE_OUT),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="report"),
                io.Clip.Output(display_name="clip"),
            ],
        )

    @classmethod
    def execute(cls, model, lora, strength, clip=None, leave_out_misfits=False):
        model, clip, report = loras.apply_vector(model, lora, strength, clip=clip, leave_out=leave_out_misfits)
        model, said = with_vectors_recipe(model, getattr(lora, "metadata", {}), strength)
        said = Said((report,)) + said
        tell(said)
        return io.NodeOutput(model, str(said), clip)


class SaveVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_SaveVector",
            display_name="Save LoRA Vector",
            category=CATEGORY,
            description="Writes a vector as a .safetensors LoRA into output/loras, where LoRA loaders find it. The "
            "file's metadata says how τ was made: the expression, and each parent's hash and λ.",
            **aliases("export lora", "convert lora", "write lora"),
            inputs=[
                vector_input("lora", "The vector to save."),
                io.String.Input("filename_prefix", default="loras/lcm_mix", tooltip="Folder and name below output."),
                io.Combo.Input("dialect", options=list(DIALECTS), default="kohya",
                               tooltip="kohya is read by ComfyUI, A1111 and Forge; peft by diffusers."),
                io.Combo.Input("dtype", options=list(DTYPES), default="float16",
                               tooltip="Precision of the file; float16 is usual."),
            ],
            outputs=[],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    def execute(cls, lora, filename_prefix, dialect, dtype):
        vector = lora_model.to_vector(lora)
        if not vector:
            raise ValueError("the vector is empty, so there is nothing to save; give a block a weight other than 0")
        tensors = vector.state_dict(dialect, getattr(torch, dtype))
        path = str(lora_files.save_new(filename_prefix, tensors, {**vector.metadata, **lora_model.record_of(lora)}))
        tell(Said((path,)))
        return io.NodeOutput()
