"""Training inside ComfyUI: a MODEL's network, conditioning and latents as `lcm_core.distill` takes them."""

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import comfy.conds
import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import comfy.utils
import folder_paths
import latent_preview
import torch
from torch import Tensor, nn

from ...lcm_core.consistency import consistency_function, multistep_sample
from ...lcm_core.files import output_path
from ...lcm_core.lora import LoRAVector
from ...lcm_core.noise import step_noise
from ...lcm_core.schedule import FlowSchedule, NoiseSchedule, Schedule, lcm_sigmas, lcm_timesteps
from .levels import flow_of
from .model_sampling import prediction_of
from .report import warn

PREDICTIONS = {"EPS": "epsilon", "V_PREDICTION": "v_prediction", "X0": "sample"}
PREVIEW_STEPS = 4
TOKENS = "num_tokens"  # the length of a prompt's context, which Lumina's networks are told


def noise_process(model) -> tuple[Schedule, str]:
    """(schedule, prediction) of a MODEL: of a flow with the MODEL's own shift.

    ValueError for one that samples as an LCM already, one whose calls another node wraps, and one of another kind.
    """
    if "model_function_wrapper" in model.model_options:
        raise ValueError(
            "a node wraps this MODEL's calls, as those of animation and tiling do, and training would go past it; "
            "connect the MODEL from before that node"
        )
    sampling = model.get_model_object("model_sampling")
    bases = {base.__name__ for base in type(sampling).__mro__}
    if "LCM" in bases or "ConsistencySampling" in bases:
        raise ValueError(
            "this MODEL went through a node that makes it sample as an LCM; connect the MODEL from before it, and "
            "apply an LCM-LoRA with Apply LoRA Vector"
        )
    flow = flow_of(sampling)
    if flow and prediction_of(sampling) == "CONST":
        return FlowSchedule(flow), "flow_prediction"
    prediction = next((PREDICTIONS[name] for name in PREDICTIONS if name in bases), None)
    if prediction is None or not hasattr(sampling, "sigmas"):
        raise ValueError(
            f"the model samples as {type(sampling).__name__}; models that predict noise, v or the sample on a table of "
            "timesteps, and flow models, can be distilled, such as Stable Diffusion, Flux, Qwen-Image or Wan"
        )
    return NoiseSchedule(1 / (1 + sampling.sigmas.double() ** 2)), prediction


@contextmanager
def trainable(model) -> Iterator[nn.Module]:
    """The MODEL's network on its device, its weights frozen, outside of the host's inference mode.

    Weights that were loaded in inference mode become ordinary tensors of the same values, one at a time: autograd takes
    no others.
    """
    with torch.inference_mode(False):
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        network = model.model.diffusion_model
        asked = {p: p.requires_grad for p in network.parameters()}
        for module in network.modules():
            for name, p in module._parameters.items():
                if p is not None and p.is_inference():
                    asked[p] = False
                    module._parameters[name] = nn.Parameter(p.clone(), requires_grad=False)
        network.requires_grad_(False)
        try:
            yield network
        finally:
            for p in network.parameters():
                p.requires_grad_(asked.get(p, False))
            comfy.model_management.soft_empty_cache()


@dataclass(frozen=True)
class Conditions:
    """What the network takes beside x and t: the names of tensors, each entry's own, and constants of all of them."""

    names: list[str]
    rows: list[tuple[Tensor, ...]]  # of the positive entries, then the negative one, without a batch axis
    constants: dict[str, object]


@contextmanager
def norms_on_copies(network: nn.Module) -> Iterator[None]:
    """Norms get a copy of their input where gradients are needed, which they keep for the backward pass.

    The host's Flux adds to what a norm has read in place, and autograd refuses what was changed since.
    """

    def copied(norm: nn.Module, inputs: tuple) -> tuple:
        return (inputs[0].clone(), *inputs[1:]) if inputs[0].requires_grad else inputs

    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm | nn.RMSNorm)]
    hooks = [norm.register_forward_pre_hook(copied) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def conditions(model, positive: list, negative: list | None, latent: Tensor) -> Conditions:
    """Of N positive entries and the negative one, N + 1 rows.

    Without a negative its tensors are zeros, SDXL's convention. latent (C, …) gives the size that SDXL is told.
    """
    if negative is None:
        embedding, options = positive[0]
        pooled = {"pooled_output": torch.zeros_like(p)} if (p := options.get("pooled_output")) is not None else {}
        negative = [[torch.zeros_like(embedding), {**options, **pooled}]]
    if len(negative) != 1:
        raise ValueError(f"the negative has {len(negative)} conditionings; give one, or none for zeros")
    found = []
    for entry, kind in [*((entry, "positive") for entry in positive), (negative[0], "negative")]:
        if len(entry[0]) != 1:
            raise ValueError(f"a conditioning has {len(entry[0])} rows; give one prompt in each")
        cond = comfy.sampler_helpers.convert_cond([entry])
        (cond,) = comfy.samplers.encode_model_conds(
            model.model.extra_conds, cond, latent[None], model.load_device, kind
        )
        found.append(cond["model_conds"])
    if any(each.keys() != found[0].keys() for each in found):
        raise ValueError(f"the conditionings differ in kind: {[sorted(each) for each in found]}; encode all alike")
    tensors, constants = {}, {}
    for name, first in found[0].items():
        values = [each[name].cond for each in found]
        if isinstance(first, comfy.conds.CONDCrossAttn):
            tensors[name] = first.concat([each[name] for each in found[1:]]).clone()
        elif isinstance(first.cond, Tensor):
            tensors[name] = [value[0].clone() for value in values]
        elif name == TOKENS or (isinstance(first.cond, bool | int | float | str) and len(set(values)) == 1):
            constants[name] = first.cond
        else:
            raise ValueError(f"the conditionings have {name}, which training can't give the network; leave it out")
    names = sorted(tensors)
    rows = list(zip(*(tensors[name] for name in names), strict=True))
    return Conditions(["context" if name == "c_crossattn" else name for name in names], rows, constants)


def as_model(model, network: nn.Module, given: Conditions) -> Callable[[Tensor, Tensor, tuple, Tensor | None], Tensor]:
    """The network as model(x, t, cond, omega) of `lcm_core.distill`: x (B, C, …) is α·z + σ·ε, and a flow's t is σ."""
    dtype = model.model.manual_cast_dtype or model.model.get_dtype()
    sampling = model.get_model_object("model_sampling")
    flow = flow_of(sampling)

    def call(x: Tensor, t: Tensor, cond: tuple[Tensor, ...], omega: Tensor | None) -> Tensor:
        tensors = {name: value.to(dtype) for name, value in zip(given.names, cond, strict=True)}
        constants = dict(given.constants)
        if TOKENS in constants:
            constants[TOKENS] = tensors["context"].shape[1]
        t = (sampling.timestep(t) if flow else t).float()
        return network(x.to(dtype), t, transformer_options={}, **tensors, **constants).float()

    return call


def separate(model, latents: list[dict]) -> list[Tensor]:
    """Every picture's latent (C, H, W), or video's (C, T, H, W), float32, in the network's scale.

    A model of videos also takes a picture, as a video of one frame. ValueError where one is not this model's.
    """
    samples = [sample for latent in latents for sample in latent["samples"]]
    format = model.get_model_object("latent_format")
    axes = format.latent_dimensions + 1
    if not samples:
        raise ValueError("there are no latents; connect VAE Encode, or a batch of latents")
    scaled = []
    for sample in samples:
        if sample.ndim == 3 and axes == 4:
            sample = sample[:, None]
        if sample.ndim != axes or sample.shape[0] != format.latent_channels:
            size = "height, width" if axes == 3 else "frames, height, width"
            raise ValueError(
                f"a latent is {tuple(sample.shape)}; the model takes ({format.latent_channels}, {size}), so encode it "
                "with this model's VAE"
            )
        scaled.append(model.model.process_latent_in(sample[None].clone().float())[0])
    return scaled


def pair(entries: list, count: int) -> list:
    """One conditioning for each of `count` latents, the same for all if there is one."""
    if len(entries) not in (1, count):
        raise ValueError(
            f"{len(entries)} positive conditionings for {count} latents; give one for each latent in the same order, "
            "or one for all"
        )
    return entries * count if len(entries) == 1 else entries


def network_identity(model) -> dict[str, str]:
    """What decides what a MODEL's network computes beside its weights, which the host may patch as late as it runs."""
    from ...lcm_core.distill.identity import digest_of, fingerprint

    tensors: dict[str, Tensor] = {}
    texts: dict[str, str] = {}

    def flatten(value, place: str) -> None:
        if isinstance(value, Tensor):
            tensors[place] = value
        elif isinstance(value, dict):
            for key, item in value.items():
                flatten(item, f"{place}.{key}")
        elif isinstance(value, list | tuple):
            flatten(dict(enumerate(value)), place)
        elif isinstance(value, set | frozenset):
            flatten(sorted(value, key=str), place)
        elif hasattr(value, "__qualname__"):
            texts[place] = value.__qualname__
        elif hasattr(value, "__dict__"):
            flatten({"kind": type(value), **vars(value)}, place)
        else:
            texts[place] = str(value)

    flatten(model.patches, "patches")
    flatten(model.model.model_config.unet_config, "config")
    return {
        "compute dtype": str(model.model.manual_cast_dtype or model.model.get_dtype()),
        "patches": digest_of([texts, fingerprint(tensors)]),
    }


def state_path(prefix: str, digest: str) -> Path:
    """Where a training's state is kept: below the output folder, a file for each `digest`."""
    path = output_path(folder_paths.get_output_directory(), f"{prefix}_{digest[:16]}.safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def where(state: Path) -> list[str]:
    """Lines of a report: the state's place below the output folder, its size, and what other trainings left there."""
    output = folder_paths.get_output_directory()
    if not state.exists():
        return []
    lines = [f"state: {os.path.relpath(state, output)}, {state.stat().st_size / 1e6:,.1f} MB"]
    name = re.compile(rf"{re.escape(state.stem[:-16])}[0-9a-f]{{16}}\.safetensors")
    sizes = [path.stat().st_size for path in state.parent.iterdir() if path != state and name.fullmatch(path.name)]
    if sizes:
        lines.append(
            f"{len(sizes)} other {'states' if len(sizes) > 1 else 'state'}, {sum(sizes) / 1e6:,.1f} MB, in "
            f"{os.path.relpath(state.parent, output)}; delete those you don't need"
        )
    return lines


class Monitor:
    """The progress bar of a training, with a preview of one picture of 4 steps every `every` steps, and interrupts."""

    def __init__(self, model, call: Callable, schedule: Schedule, prediction: str, batch: tuple, every: int):
        self.model, self.call, self.schedule, self.prediction = model, call, schedule, prediction
        z, cond, _ = batch
        self.shape, self.cond, self.every = z[:1].shape, tuple(c[:1] for c in cond), every
        self.previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format) if every else None
        self.bar: comfy.utils.ProgressBar | None = None

    def report(self, step: int, steps: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        self.bar = self.bar or comfy.utils.ProgressBar(steps)
        due = self.previewer is not None and (step % self.every == 0 or step == steps)
        self.bar.update_absolute(step, steps, self.picture() if due else None)

    def picture(self) -> tuple:
        def denoise(x: Tensor, t: float) -> Tensor:
            timesteps = torch.full((1,), t, device=x.device)
            output = self.call(x, timesteps, self.cond, None)
            return consistency_function(output, x, t, self.schedule, self.prediction)

        if isinstance(self.schedule, FlowSchedule):
            grid = lcm_sigmas(PREVIEW_STEPS, self.schedule.flow)
        else:
            grid = lcm_timesteps(PREVIEW_STEPS, train_steps=self.schedule.steps)
        with torch.no_grad():
            x = step_noise(self.shape, 0, PREVIEW_STEPS).to(self.cond[0].device)
            x0 = multistep_sample(
                denoise, x, grid, self.schedule.process, noise=lambda i: step_noise(self.shape, 0, i).to(x)
            )
        return self.previewer.decode_latent_to_preview_image("JPEG", x0)


def learn(model, latents, positive, negative, config, rank: int, batch_size: int, checkpointing: bool, prefix: str,
          preview_every: int) -> tuple[LoRAVector, list[float], str]:  # fmt: skip
    """(what was learned, the loss of every step, a report) of a training of a LoRA on a MODEL.

    The MODEL is left as it was. With a prefix the state is saved (`state_path`) every `save_every` steps and when the
    user interrupts, and the same training goes on from there.
    """
    from ...lcm_core.distill import FLOW_TARGETS, LCM_TARGETS, checkpointed, distill, inject_lora
    from ...lcm_core.distill.data import Examples
    from ...lcm_core.distill.identity import digest_of, fixed_settings, training_identity
    from ...lcm_core.distill.state import read_losses

    schedule, prediction = noise_process(model)
    samples = separate(model, latents)
    prompts = [entry for conditioning in positive for entry in conditioning]
    entries = pair(prompts, len(samples))
    flow = isinstance(schedule, FlowSchedule)
    with trainable(model) as network, norms_on_copies(network) if flow else nullcontext():
        given, device = conditions(model, entries, negative, samples[0]), model.load_device
        *positive, empty = (tuple(tensor.to(device) for tensor in row) for row in given.rows)
        guided = negative is not None or config.omega != (0, 0)
        if guided and negative is None and config.needs_teacher and flow:
            raise ValueError(
                f"omega {config.omega} guides the teacher away from the empty prompt; connect it to negative, or set "
                "omega_min and omega_max to 0 for a model with a guidance of its own"
            )
        examples = Examples([z.to(device) for z in samples], positive, empty if guided else (), batch_size, config.seed)
        torch.manual_seed(config.seed)
        targets = FLOW_TARGETS if flow else LCM_TARGETS
        adapter = inject_lora(network, targets, rank, clamp=True)
        call = as_model(model, network, given)
        state, identity, losses, progress = None, {}, [], None
        try:
            if prefix.strip():
                identity = {**examples.identity, **network_identity(model)}
                known = training_identity(adapter, schedule, prediction, identity)
                state = state_path(prefix, digest_of([fixed_settings(config), known]))
                losses = read_losses(state) if state.exists() else []
            first = len(losses)
            monitor = Monitor(model, call, schedule, prediction, examples(0), preview_every)
            steps = distill(
                call, adapter, examples, config, schedule=schedule, prediction=prediction, state=state,
                identity=identity,
            )  # fmt: skip
            with closing(steps), checkpointed(network, copies=flow) if checkpointing else nullcontext():
                for progress in steps:
                    losses.append(progress.loss)
                    monitor.report(progress.step, progress.steps)
            vector = adapter.vector()
        finally:
            adapter.remove()
    vector = LoRAVector({name: type(f)(f.down.cpu(), f.up.cpu(), f.alpha) for name, f in vector.modules.items()})
    tenth = max(1, len(losses) // 10)
    report = [f"{len(vector)} modules, rank {vector.rank}, {vector.parameters:,} parameters; {config.steps} steps"]
    report += [f"{len(samples)} latents, {len(prompts)} prompt{'s' * (len(prompts) != 1)}"]
    report += [f"resumed after step {first}"] if first else []
    start, end = (sum(part) / tenth for part in (losses[:tenth], losses[-tenth:]))
    report += [f"mean loss of the first {tenth} steps {start:.4g}, of the last {end:.4g}"]
    if progress is not None and progress.state_error:
        warn(progress.state_error)
        report.append(progress.state_error)
    report += where(state) if state else []
    logging.info("LCM-LoRA: %s", "; ".join(report))
    return vector, losses, "\n".join(report)
