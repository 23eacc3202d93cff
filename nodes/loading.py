"""Loading an acceleration LoRA onto a model, in one node."""

from comfy_api.latest import io

from .acceleration import AUTO, NONE, found_recipe, with_recipe, with_recipes_shift
from .host import lora_files, loras
from .host.files import stamp
from .host.model_sampling import with_consistency_sampling
from .host.recipes import choices
from .host.report import Said, tell
from .inputs import LEAVE_OUT, aliases, expert


class LoadLCMLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Loader",
            display_name="Load Acceleration LoRA",
            category="LCM-LoRA",
            description="Puts an acceleration LoRA (LCM, Lightning, Hyper-SD, DMD2 …) on a model, θ' = θ + strength·τ, "
            "finds out which it is and prepares the model's sampling for it. LCM Sampler then takes steps, levels and "
            "guidance from its recipe. Reads every dialect and kind of LoRA file, DoRA and OFT included.",
            **aliases("acceleration", "few steps", "fast", "turbo", "lightning", "hyper", "lcm", "dmd2", "speed up"),
            inputs=[
                io.Model.Input("model", tooltip="The model to speed up: the LoRA's base model or a fine-tune of it."),
                io.Combo.Input("lora_name", options=lora_files.lora_files(),
                               tooltip="An LCM-LoRA or another accelerator of models/loras."),
                io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.01,
                               tooltip="λ₂ of the paper. 1 is usual; the report says where the recipe takes another."),
                io.Clip.Input("clip", optional=True,
                              tooltip="For a LoRA that changes the text encoder too; LCM-LoRAs don't."),
                expert(LEAVE_OUT),
                io.Combo.Input("recipe", options=[AUTO, NONE, *choices()], default=AUTO, optional=True,
                               tooltip="How the LoRA is sampled. auto finds it by the file's metadata, hash, name or "
                               "modules; choose it where the file says too little. none leaves sampling to you."),
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
        return stamp(map(lora_files.lora_path, [lora_name] if lora_name else lora_files.lora_files()))

    @classmethod
    def execute(cls, model, lora_name, strength, clip=None, leave_out_misfits=False, recipe=AUTO):
        lora = lora_files.load_lora(lora_name)
        found, record, why = found_recipe(model, lora, lora_name, recipe)
        model, clip, report = loras.apply_vector(model, lora, strength, lora_name, clip, leave_out=leave_out_misfits)
        model, shift = with_recipes_shift(model, found if strength > 0 else None)
        model, carried = with_recipe(with_consistency_sampling(model), found, lora_name, strength)
        said = Said((report,)) + why + carried + shift
        tell(said)
        return io.NodeOutput(model, lora.saying(record), str(said), clip)
