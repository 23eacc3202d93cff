"""Loading an LCM-LoRA onto a model, in one node."""

from comfy_api.latest import io

from . import host


class LoadLCMLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Loader",
            display_name="Load LCM-LoRA",
            category="LCM-LoRA",
            description="Puts an acceleration LoRA on a model and prepares the model's sampling for it: "
            "θ'_LCM = θ + strength·τ_LCM. Reads every dialect of LoRA file.",
            inputs=[
                io.Model.Input("model", tooltip="The model to speed up: the LoRA's base model or a fine-tune of it."),
                io.Combo.Input("lora_name", options=host.lora_files(), tooltip="An LCM-LoRA of models/loras."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.01,
                               tooltip="λ₂ of the paper. 1 is what it was trained for."),
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.LoraModel.Output(display_name="lora"),
                io.String.Output(display_name="report"),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, lora_name, strength):
        vector = host.load_vector(lora_name)
        patched, report = host.apply_vector(model, vector, strength, lora_name)
        return io.NodeOutput(host.with_consistency_sampling(patched), vector.state_dict("native"), report)
