"""LoRA vectors: load, apply, add with weights, combine, save. LORA_MODEL is the host's dict of tensors."""

import torch
from comfy_api.latest import io

from ..lcm_core.lora import METHODS, LoRAVector, combine, evaluate_expression, parse_expression
from ..lcm_core.lora.combine import MAJORITY_SIGN_METHODS, options_of
from ..lcm_core.lora.record import EXPRESSION, call_record, sum_record
from . import host, host_loras

CATEGORY = "LCM-LoRA/vectors"
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
RANK = io.Int.Input(
    "rank", default=0, min=0, max=4096,
    tooltip="The largest rank of a module in the result, such as 64. 0 keeps all.",
)  # fmt: skip
ENERGY = io.Float.Input(
    "energy", default=1.0, min=0.01, max=1.0, step=0.001, round=0.0001,
    tooltip="The share of each module's squared norm that is enough, such as 0.99: more ranks than that are dropped. "
    "1 drops nothing.",
)  # fmt: skip

LEAVE_OUT = io.Boolean.Input(
    "leave_out_misfits", default=False, optional=True,
    tooltip="On: what fits of a LoRA for a somewhat different model is applied, the rest named. Off refuses it.",
)  # fmt: skip


def weight_input(name: str, default: float, tooltip: str):
    return io.Float.Input(name, default=default, min=-10.0, max=10.0, step=0.01, tooltip=tooltip)


def lambda_input(name: str, default: float, tooltip: str):
    return io.Float.Input(
        name, default=default, min=-2.0, max=2.0, step=0.01, display_mode=io.NumberDisplay.slider, tooltip=tooltip
    )


def vector_input(name: str, tooltip: str, optional: bool = False):
    return io.LoraModel.Input(name, optional=optional, tooltip=tooltip)


def vector_outputs():
    return [io.LoraModel.Output(display_name="lora"), io.String.Output(display_name="report")]


def limits(rank: int, energy: float) -> dict[str, int | float | None]:
    """RANK's and ENERGY's values as `LoRAVector.compress` takes them."""
    return {"rank": rank or None, "energy": energy if energy != 1 else None}


def size(vector: LoRAVector, norm: float | None = None) -> str:
    norm = vector.norm() if norm is None else norm
    return f"{len(vector)} modules, rank {vector.rank}, {vector.parameters:,} parameters, norm {norm:.4g}"


class LoadVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_LoadVector",
            display_name="Load LoRA Vector",
            category=CATEGORY,
            description="Reads a LoRA file of any dialect as a vector τ for arithmetic, without applying it.",
            inputs=[io.Combo.Input("lora_name", options=host_loras.lora_files(), tooltip="A LoRA of models/loras.")],
            outputs=[io.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def fingerprint_inputs(cls, lora_name):
        return host.stamp(map(host_loras.lora_path, [lora_name] if lora_name else host_loras.lora_files()))

    @classmethod
    def execute(cls, lora_name):
        return io.NodeOutput(host_loras.load_vector(lora_name))


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
                vector_input("lora", "A vector from Load LoRA Vector, arithmetic or a trainer."),
                weight_input("strength", 1.0, "How much of the vector to add; negative takes it away."),
                io.Clip.Input("clip", optional=True, tooltip="For a LoRA that changes the text encoder too."),
                LEAVE_OUT,
            ],
            outputs=[
                io.Model.Output(display_name="model"),
                io.String.Output(display_name="report"),
                io.Clip.Output(display_name="clip"),
            ],
        )

    @classmethod
    def execute(cls, model, lora, strength, clip=None, leave_out_misfits=False):
        model, clip, report = host_loras.apply_vector(model, lora, strength, clip=clip, leave_out=leave_out_misfits)
        host.show_text(report)
        return io.NodeOutput(model, report, clip)


class Arithmetic(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Arithmetic",
            display_name="LoRA Vector Arithmetic",
            category=CATEGORY,
            description="Merges LoRAs: τ' = λ₁·a + λ₂·b (+ λ₃·c), exact for any ranks and alphas. The paper's style "
            "mix is 0.8·style + 1.0·LCM.",
            inputs=[
                vector_input("a", "The first vector, the style in the paper's mix."),
                lambda_input("lambda_1", 0.8, "λ₁, the weight of a."),
                vector_input("b", "The second vector, the LCM-LoRA in the paper's mix."),
                lambda_input("lambda_2", 1.0, "λ₂, the weight of b."),
                vector_input("c", "A third vector, if there is one.", optional=True),
                lambda_input("lambda_3", 0.0, "λ₃, the weight of c; unused without c."),
            ],
            outputs=[io.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def execute(cls, a, lambda_1, b, lambda_2, lambda_3, c=None):
        terms = [(a, lambda_1), (b, lambda_2)] + ([(c, lambda_3)] if c is not None else [])
        loras, weights = zip(*terms, strict=True)
        total = combine([host_loras.to_vector(lora) for lora in loras], weights)
        return io.NodeOutput(host_loras.LoRATensors(total, sum_record(list(map(host_loras.record_of, loras)), weights)))


class Expression(io.ComfyNode):
    INPUTS = ("a", "b", "c", "d")

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Expression",
            display_name="LoRA Expression",
            category=CATEGORY,
            description="Merges LoRAs as a text says: τ' = Σ λᵢ·τᵢ, such as `0.8*style + 1.0*lcm - 0.3*detail`, exact "
            "for any ranks and alphas. The names a, b, c, d are the inputs, others are files of models/loras.",
            inputs=[
                io.String.Input("expression", default="0.8*a + 1.0*b", multiline=True, dynamic_prompts=False,
                                tooltip="Numbers, names, + - * / and parentheses. A file's name may do without folder "
                                "and .safetensors, and stands in quotes if it has spaces. A minus after a name needs a "
                                "space before it."),
                *(vector_input(name, f"The vector named {name}, if it is in the text.", True) for name in cls.INPUTS),
            ],
            outputs=vector_outputs(),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, expression):
        def look(name: str) -> LoRAVector:
            if name not in cls.INPUTS:
                host_loras.find_lora(name)
            return LoRAVector()

        try:
            if isinstance(expression, str):
                evaluate_expression(expression, look)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, expression, **connected):
        files = host_loras.lora_files()
        if expression is not None:
            files = [host_loras.find_lora(name) for name in parse_expression(expression) if name not in cls.INPUTS]
        return host.stamp(map(host_loras.lora_path, files))

    @classmethod
    def execute(cls, expression, **connected):
        loras, lines = {}, []

        def load(name: str) -> LoRAVector:
            if name in cls.INPUTS and connected.get(name) is None:
                raise LookupError("that input is not connected")
            loras[name] = connected[name] if name in cls.INPUTS else host_loras.load_vector(host_loras.find_lora(name))
            vector = host_loras.to_vector(loras[name])
            lines.append(f"{name}: {size(vector)}")
            return vector

        total, weights = evaluate_expression(expression, load), parse_expression(expression)
        record = sum_record([host_loras.record_of(loras[name]) for name in weights], list(weights.values()))
        report = "\n".join([f"{record[EXPRESSION]}: {size(total)}", *lines])
        return io.NodeOutput(host_loras.LoRATensors(total, record), report)


class Combine(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Combine",
            display_name="Combine LoRA Vectors",
            category=CATEGORY,
            description="Merges LoRAs. sum: τ' = Σ wᵢ·τᵢ. project_out: w_a·(a − w_b·p), p being a's part along b. "
            "slerp: the arc from w_a·a to w_b·b. magnitude_prune: Σ wᵢ·(the largest values of τᵢ). ties: those, then "
            "the mean of the values with the majority's sign. dare_linear, dare_ties: values drop out at random, the "
            "rest grow.",
            inputs=[
                vector_input("a", "The first vector."),
                vector_input("b", "The second vector."),
                io.Combo.Input("method", options=list(METHODS), default="ties",
                               tooltip="slerp and project_out take a and b alone, the others up to four vectors."),
                weight_input("weight_a", 1.0, "The weight of a."),
                weight_input("weight_b", 1.0, "The weight of b; in project_out how much of the common part goes."),
                weight_input("weight_c", 1.0, "The weight of c; unused without c."),
                weight_input("weight_d", 1.0, "The weight of d; unused without d."),
                io.Float.Input("density", default=0.5, min=0.01, max=1.0, step=0.01,
                               tooltip="magnitude_prune, ties, dare: the share of each ΔW's values that stays."),
                io.Float.Input("t", default=0.5, min=0.0, max=1.0, step=0.01,
                               tooltip="slerp: the place between a at 0 and b at 1."),
                io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False,
                             tooltip="dare: which values are dropped."),
                io.Combo.Input("majority_sign_method", options=list(MAJORITY_SIGN_METHODS), default="total",
                               tooltip="ties, dare_ties: a value's sign is that of the sum, or of most vectors."),
                io.Boolean.Input("per_module", default=False,
                                 tooltip="project_out: on takes the common part of each module by itself."),
                RANK,
                ENERGY,
                vector_input("c", "A third vector, if there is one.", optional=True),
                vector_input("d", "A fourth vector, if there is one.", optional=True),
            ],
            outputs=vector_outputs(),
        )  # fmt: skip

    @classmethod
    def execute(cls, a, b, method, weight_a, weight_b, weight_c, weight_d, rank, energy, c=None, d=None, **options):
        terms = [(a, weight_a), (b, weight_b), (c, weight_c), (d, weight_d)]
        loras, weights = zip(*((lora, weight) for lora, weight in terms if lora is not None), strict=True)
        chosen = {name: options[name] for name in options_of(method)} | limits(rank, energy)
        vectors = [host_loras.to_vector(lora) for lora in loras]
        vector = combine(vectors, weights, method, progress=host.progress(), **chosen)
        record = call_record(method, list(map(host_loras.record_of, loras)), weights, **chosen)
        return io.NodeOutput(host_loras.LoRATensors(vector, record), f"{record[EXPRESSION]}: {size(vector)}")


class SaveVector(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_SaveVector",
            display_name="Save LoRA Vector",
            category=CATEGORY,
            description="Writes a vector as a .safetensors LoRA into output/loras, where LoRA loaders find it. The "
            "file's metadata says how τ was made: the expression, and each parent's hash and λ.",
            inputs=[
                vector_input("lora", "The vector to save."),
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
        vector = host_loras.to_vector(lora)
        if not vector:
            raise ValueError("the vector is empty, so there is nothing to save; give a block a weight other than 0")
        tensors = vector.state_dict(dialect, DTYPES[dtype])
        path = str(host_loras.save_new(filename_prefix, tensors, {**vector.metadata, **host_loras.record_of(lora)}))
        host.show_text(path)
        return io.NodeOutput(ui={"text": [path]})
