"""How a MODEL of the host samples: what it predicts, how it counts time, its schedule, and f_θ of these."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...lcm_core.consistency import boundary_scalings
from ...lcm_core.schedule import expand
from .report import note

RANGE = 1000  # the timesteps that users write, 0 … 999, whatever the length of a model's table


class ConsistencySampling:
    """Mixed in before a model's own sampling class: f_θ(x, t) = c_skip(t)·x + c_out(t)·x̂₀ in place of x̂₀.

    x̂₀ is the base class's, so noise, v and sample predictions each keep their meaning. c_skip multiplies the sample as
    the network gets it, which for the host's variance-exploding sigmas is x/√(1 + σ²), the paper's x.
    """

    def calculate_denoised(self, sigma: Tensor, model_output: Tensor, model_input: Tensor) -> Tensor:
        x0 = super().calculate_denoised(sigma, model_output, model_input)  # type: ignore[misc]
        x = self.calculate_input(sigma, model_input)  # type: ignore[attr-defined]
        c_skip, c_out = boundary_scalings(self.timestep(sigma).flatten().float())  # type: ignore[attr-defined]
        return expand(c_skip, x) * x + expand(c_out, x0) * x0


def shrink_timestep(sampling, sigma: float, gamma: float) -> float:
    """⌊(1 − γ)·t⌋, for a table of timesteps."""
    timestep = sampling.timestep(torch.tensor([sigma]))
    return sampling.sigma(((1 - gamma) * timestep).floor()).item()


def shrink_time(sampling, sigma: float, gamma: float) -> float:
    """(1 − γ)·t, for a continuous t that is 0 at σ = 0."""
    return float(sampling.sigma((1 - gamma) * sampling.timestep(torch.tensor([sigma]))))


def shrink_cascade(sampling, sigma: float, gamma: float) -> float:
    """(1 − γ)·t, where the class's sigmas have a shift that its timesteps have not."""
    return shrink_time(sampling, sigma, gamma) / sampling.shift


def shrink_sigma(sampling, sigma: float, gamma: float) -> float:
    """(1 − γ)·σ, for a flow, whose time σ is, and where t is ¼·log σ, with no 0."""
    return (1 - gamma) * sigma


# By the host's class that says what a timestep is: the level between two of γ < 1.
BETWEEN: dict[str, Callable[..., float]] = {
    "ModelSamplingDiscrete": shrink_timestep,
    "ModelSamplingDiscreteEDM": shrink_sigma,
    "ModelSamplingContinuousEDM": shrink_sigma,
    "ModelSamplingContinuousV": shrink_time,
    "ModelSamplingCosmosRFlow": shrink_time,
    "ModelSamplingDiscreteFlow": shrink_sigma,
    "ModelSamplingFlux": shrink_sigma,
    "StableCascadeSampling": shrink_cascade,
}
# By the host's class that says what is predicted. On a table of timesteps these need the paper's c_skip and c_out, and
# in continuous time these have x̂₀ = x at σ = 0, so x̂₀ is f_θ: c_skip and c_out are in it (arXiv 2303.01469, section 3).
ON_A_TABLE = {"EPS", "V_PREDICTION", "V_PREDICTION_DDPM", "X0"}
IN_CONTINUOUS_TIME = {"EPS", "V_PREDICTION", "EDM", "CONST", "COSMOS_RFLOW"}


def defined_by(sampling, *methods: str) -> str:
    """The name of the host's class that gives a sampling one of these methods, the most special one."""
    own = (base for base in type(sampling).__mro__ if base is not ConsistencySampling)
    return next((base.__name__ for base in own if not vars(base).keys().isdisjoint(methods)), "")


def prediction_of(sampling) -> str:
    """The name of the host's class that says what a sampling predicts from what."""
    return defined_by(sampling, "calculate_input", "calculate_denoised", "noise_scaling")


def consistency(sampling) -> str | None:
    """Whether f_θ of a model's sampling is its "x0", or is "scaled" by c_skip and c_out of that; None: it has none."""
    clock, prediction = defined_by(sampling, "timestep"), prediction_of(sampling)
    if isinstance(sampling, ConsistencySampling) or prediction == "LCM":
        return "x0"
    if clock == "ModelSamplingDiscrete" and prediction in ON_A_TABLE:
        return "scaled"
    return "x0" if clock in BETWEEN and prediction in IN_CONTINUOUS_TIME else None


def with_consistency_sampling(model):
    """A clone of the MODEL whose prediction is f_θ; the MODEL itself if that is so already.

    Core's `lcm` patch is taken over. ValueError for a sampling class that consistency sampling is not defined for.
    """
    model = without_lcm_patch(model)
    sampling = model.get_model_object("model_sampling")
    found = consistency(sampling)
    if found is None:
        bases = " + ".join(sorted(base.__name__ for base in type(sampling).__bases__))
        raise ValueError(
            f"the model samples as {bases}, which consistency sampling is not defined for; use a model that predicts "
            "noise, v, the sample or a flow from a noisy sample, and take out nodes that change its model sampling"
        )
    if found == "x0":
        return model

    class ModelSamplingConsistency(ConsistencySampling, type(sampling)):
        pass

    patched = ModelSamplingConsistency(model.model.model_config)
    vars(patched).update(vars(sampling))  # the table and the settings that it has now
    model = model.clone()
    model.add_object_patch("model_sampling", patched)
    return model


def without_lcm_patch(model):
    """A clone of the MODEL without core's ModelSamplingDiscrete `lcm`; the MODEL itself if it has no such patch.

    That patch has a grid of 50 points of its own and takes every output for noise. One on another schedule than the
    model's, as animation nodes make it, stays; that is a ValueError for a model that does not predict noise.
    """
    patch = model.get_model_object("model_sampling")
    if prediction_of(patch) != "LCM":
        return model
    bare = model.clone()
    bare.object_patches.pop("model_sampling", None)
    own = bare.get_model_object("model_sampling")
    if {getattr(each, "zsnr", None) for each in (own, patch)} == {False, True}:
        own = type(own)(model.model.model_config, zsnr=patch.zsnr)
        bare.add_object_patch("model_sampling", own)
    stride = len(own.sigmas) // len(patch.sigmas)
    if own is not patch and torch.allclose(own.sigmas[stride - 1 :: stride].cpu(), patch.sigmas.cpu(), rtol=1e-3):
        note("took the place of ModelSamplingDiscrete's 'lcm', which is not needed here")
        return bare
    if prediction_of(own) not in ("EPS", "LCM"):
        raise ValueError(
            "a node made this model sample as 'lcm' on a schedule of its own, which takes its "
            f"{prediction_of(own)} for noise; take that node out, this one does its work"
        )
    return model


def thousandths(sampling, sigmas: Sequence[float]) -> list[float]:
    """Each level's timestep as users write it, in 0 … 999 of the model's range; −1 for a level without noise."""
    table = sampling.sigmas.double().cpu().numpy()
    places = np.interp(sigmas, np.concatenate([[0.0], table]), np.arange(len(table) + 1))
    return (places * RANGE / len(table) - 1).tolist()


def preserving(sampling, sigma: float) -> float:
    """What the host's noisy sample x₀ + σ·ε is multiplied by to be the one that the model takes.

    1, or 1/√(1 + σ²) where the class does not do it itself: CogVideoX's.
    """
    return (1 + sigma**2) ** -0.5 if prediction_of(sampling) == "V_PREDICTION_DDPM" else 1.0


def forward_process(sampling):
    """(process, intermediate) of `multistep_sample` over a host model's sigmas.

    process(σ) is what the host's noise_scaling does to 1 and 0; intermediate(σ, γ) is the level of (1 − γ)·t.
    """

    def process(sigma: float) -> tuple[float, float]:
        level, scale = torch.tensor([sigma]), preserving(sampling, sigma)
        alpha = sampling.noise_scaling(level, torch.zeros(1), torch.ones(1))
        noise = sampling.noise_scaling(level, torch.ones(1), torch.zeros(1))
        return scale * alpha.item(), scale * noise.item()

    clock = "ModelSamplingDiscreteFlow" if prediction_of(sampling) == "CONST" else defined_by(sampling, "timestep")
    shrink = BETWEEN.get(clock, shrink_timestep)
    return process, lambda sigma, gamma: shrink(sampling, sigma, gamma)
