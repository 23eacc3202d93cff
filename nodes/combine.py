"""LoRA vectors made into one: weighted sums, sums as a text, and the other combine methods."""

from comfy_api.latest import io

from ..lcm_core.accelerators import read_sampling
from ..lcm_core.lora import METHODS, LoRAVector, combine, conflicts, evaluate_expression, parse_expression
from ..lcm_core.lora.method import all_options, users_of
from ..lcm_core.lora.record import EXPRESSION, combine_record, sum_record
from .host import lora_files, lora_model
from .host.files import stamp
from .host.report import progress, warn
from .inputs import (
    CATEGORY,
    ENERGY,
    GROWS,
    LETTERS,
    RANK,
    aliases,
    lambda_input,
    limits,
    more_terms,
    more_vectors,
    more_weights_input,
    option_input,
    size,
    vector_input,
    vector_outputs,
    weight_input,
)


def made(vector: LoRAVector, record: dict[str, str]) -> lora_model.LoRATensors:
    """The LORA_MODEL of a vector; the node says of a sum of several accelerators that it has no recipe."""
    try:
        read_sampling(vector.metadata)
    except ValueError as error:
        warn(str(error))
    return lora_model.LoRATensors(vector, record)


class Arithmetic(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="LCMLoRA_Arithmetic",
            display_name="LoRA Vector Arithmetic",
            category=CATEGORY,
            description="Merges LoRAs: τ' = λ₁·a + λ₂·b (+ λ₃·c), exact for any ranks and alphas. The paper's style "
            "mix is 0.8·style + 1.0·LCM.",
            **aliases("merge lora", "add lora", "mix lora", "weighted sum"),
            inputs=[
                vector_input("a", "The first vector, the style in the paper's mix."),
                lambda_input("lambda_1", 0.8, "λ₁, the weight of a."),
                vector_input("b", "The second vector, the LCM-LoRA in the paper's mix."),
                lambda_input("lambda_2", 1.0, "λ₂, the weight of b."),
                vector_input("c", "A third vector, if there is one.", optional=True),
                lambda_input("lambda_3", 0.0, "λ₃, the weight of c; unused without c."),
                more_weights_input("more_lambdas", "d"),
                *more_vectors("d"),
            ],
            outputs=[io.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def execute(cls, a, lambda_1, b, lambda_2, lambda_3, c=None, more_lambdas="", more=None):
        terms = [(a, lambda_1), (b, lambda_2)] + ([(c, lambda_3)] if c is not None else [])
        loras, weights = zip(*terms, *more_terms("more_lambdas", more, more_lambdas).values(), strict=True)
        total = combine([lora_model.to_vector(lora) for lora in loras], weights)
        return io.NodeOutput(made(total, sum_record(list(map(lora_model.record_of, loras)), weights)))


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
            **aliases("merge lora", "lora formula"),
            inputs=[
                io.String.Input("expression", default="0.8*a + 1.0*b", multiline=True, dynamic_prompts=False,
                                tooltip="Numbers, names, + - * / and parentheses. A file's name may do without folder "
                                "and .safetensors, and stands in quotes if it has spaces. A minus after a name needs a "
                                "space before it."),
                *(vector_input(name, f"The vector named {name}, if it is in the text.", True) for name in cls.INPUTS),
                *more_vectors("e"),
            ],
            outputs=vector_outputs(),
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, expression):
        def look(name: str) -> LoRAVector:
            if name not in (LETTERS if GROWS else cls.INPUTS):
                lora_files.find_lora(name)
            return LoRAVector()

        try:
            if isinstance(expression, str):
                evaluate_expression(expression, look)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, expression, more=None, **connected):
        files = lora_files.lora_files()
        if expression is not None:
            inputs = {*cls.INPUTS, *(more or {})}
            files = [lora_files.find_lora(name) for name in parse_expression(expression) if name not in inputs]
        return stamp(map(lora_files.lora_path, files))

    @classmethod
    def execute(cls, expression, more=None, **connected):
        inputs = {name: lora for name, lora in {**connected, **(more or {})}.items() if lora is not None}
        loras, lines = {}, []

        def load(name: str) -> LoRAVector:
            if name in cls.INPUTS and name not in inputs:
                raise LookupError("that input is not connected")
            loras[name] = inputs[name] if name in inputs else lora_files.load_vector(lora_files.find_lora(name))
            vector = lora_model.to_vector(loras[name])
            lines.append(f"{name}: {size(vector)}")
            return vector

        total, weights = evaluate_expression(expression, load), parse_expression(expression)
        record = sum_record([lora_model.record_of(loras[name]) for name in weights], list(weights.values()))
        report = "\n".join([f"{record[EXPRESSION]}: {size(total)}", *lines])
        return io.NodeOutput(made(total, record), report)


class Combine(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        options = [
            option_input(name, option, default, users_of(name), option.place > FIRST)
            for name, (option, default) in all_options().items()
        ]
        return io.Schema(
            node_id="LCMLoRA_Combine",
            display_name="Combine LoRA Vectors",
            category=CATEGORY,
            description="Merges LoRAs by one of these methods. "
            + " ".join(f"{name}: {method.about}" for name, method in METHODS.items()),
            **aliases("merge lora", "ties", "dare", "svd", "mix lora"),
            inputs=[
                vector_input("a", "The first vector."),
                vector_input("b", "The second vector."),
                io.Combo.Input("method", options=list(METHODS), default="ties", tooltip=pairs_tooltip()),
                weight_input("weight_a", 1.0, "The weight of a."),
                weight_input("weight_b", 1.0, "The weight of b; in project_out how much of the common part goes."),
                weight_input("weight_c", 1.0, "The weight of c; unused without c."),
                weight_input("weight_d", 1.0, "The weight of d; unused without d."),
                *options[:FIRST],
                RANK,
                ENERGY,
                vector_input("c", "A third vector, if there is one.", optional=True),
                vector_input("d", "A fourth vector, if there is one.", optional=True),
                more_weights_input("more_weights", "e"),
                *options[FIRST:],
                *more_vectors("e"),
            ],
            outputs=vector_outputs(),
        )

    @classmethod
    def execute(
        cls, a, b, method, weight_a, weight_b, weight_c, weight_d, rank, energy, c=None, d=None,
        more_weights="", more=None, **options,
    ):  # fmt: skip
        terms = {"a": (a, weight_a), "b": (b, weight_b), "c": (c, weight_c), "d": (d, weight_d)}
        terms = {name: term for name, term in terms.items() if term[0] is not None}
        terms |= more_terms("more_weights", more, more_weights)
        loras, weights = zip(*terms.values(), strict=True)
        known = METHODS[method].options
        chosen = METHODS[method].resolved({name: value for name, value in options.items() if name in known})
        vectors, compressed = [lora_model.to_vector(lora) for lora in loras], limits(rank, energy)
        vector = combine(vectors, weights, method, progress=progress(), **compressed, **chosen)
        record = combine_record(method, list(map(lora_model.record_of, loras)), weights, chosen, compressed)
        found, names = conflicts(vectors, weights), list(terms)
        lines = [f"cosine of {names[i]} and {names[j]}: {cosine:.4f}" for (i, j), cosine in found.cosines.items()]
        lines += [f"energy cancelled 1 − ‖Σ wᵢ·τᵢ‖²/Σ ‖wᵢ·τᵢ‖²: {found.cancelled:.2%}"]
        report = "\n".join([f"{record[EXPRESSION]}: {size(vector)}", *lines])
        return io.NodeOutput(made(vector, record), report)


# Options that have their widgets before rank and energy; graphs keep values by the order of widgets.
FIRST = 5


def pairs_tooltip() -> str:
    pairs = [name for name, method in METHODS.items() if method.vectors == 2]
    return f"{', '.join(pairs)} take a and b alone, the others any number of vectors."
