"""Loading an LCM-LoRA onto a model, in one node."""

from comfy_api.latest import io

from . import host_loras
from .host.files import stamp
from .host.model_sampling import with_consistency_sampling
from .host.report import show_text
from .inputs import LEAVE_OUT


class LoadLCMLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Loader",
            display_name="Load LCM-LoRA",
            category="LCM-LoRA",
            description="Puts an acceleration LoRA on a model and prepares the model's sampling for it: "
            "θ'_LCM = θ + strength·τ_LCM. Reads every dialect and kind of LoRA file, DoRA and OFT included.",
            inputs=[
                io.Model.Input("model", tooltip="The model to speed up: the LoRA's base model or a fine-tune of it."),
                io.Combo.Input("lora_name", options=host_loras.lora_files(), tooltip="An LCM-LoRA of models/loras."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.01,
                               tooltip="λ₂ of the paper. 1 is what it was trained for."),
                io.Clip.Input("clip", optional=True,
                              tooltip="For a LoRA that changes the text encoder too; LCM-LoRAs don't."),
                LEAVE_OUT,
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.LoraModel.Output(display_name="lora"),
                io.String.Output(display_name="report"),
                io.Clip.Output(display_name="clip"),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, lora_name, **others):
        return stamp(map(host_loras.lora_path, [lora_name] if lora_name else host_loras.lora_files()))

    @classmethod
    def execute(cls, model, lora_name, strength, clip=None, leave_out_misfits=False):
        lora = host_loras.load_lora(lora_name)
        model, clip, report = host_loras.apply_vector(
            model, lora, strength, lora_name, clip, leave_out=leave_out_misfits
        )
        show_text(report)
        return io.NodeOutput(with_consistency_sampling(model), lora, report, clip)
