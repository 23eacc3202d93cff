"""Twenty steps of the trainer against the algorithms written out: loss, clipping, AdamW, rate, average, PEFT's LoRA.

In float64, so that a wrong constant shows. The network, and what a step draws, are the trainer's own.
"""

import math
from dataclasses import replace

import peft
import pytest
import torch
from tiny_training import SCHEDULE, Tiny, batches
from torch import nn
from torch.func import functional_call

from lcm_core.distill import DistillConfig, FullWeights, distill, inject_lora
from lcm_core.distill.randomness import draw_step

STEPS, TARGETS, RANK, ALPHA = 20, ("conv1", "to_q"), 2, 3.0
CONFIG = DistillConfig(
    steps=STEPS, learning_rate=2e-2, omega=(1, 4), warmup=4, decay_to=0.2, weight_decay=0.05, max_grad_norm=0.5,
    huber_c=0.02, seed=3,
)  # fmt: skip
KINDS = {
    "LoRA": (CONFIG, "epsilon"),
    "LoRA with an average": (replace(CONFIG, target_decay=0.8, accumulate=3, max_grad_norm=0.15), "v_prediction"),
    "LoRA by squares": (
        replace(CONFIG, distance="l2", accumulate=2, decay_to=1.0, warmup=0, max_grad_norm=0.15),
        "epsilon",
    ),
    "LoRA without teacher": (replace(CONFIG, objective="lcf", target_decay=0.5, max_grad_norm=0.15), "epsilon"),
    "all weights": (replace(CONFIG, target_decay=0.8, on_grid=False), "sample"),
}


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(seed=0):
    torch.manual_seed(seed)
    return Tiny(dropout=0).requires_grad_(False)


def data(step):
    z, (cond,), (uncond,) = batches(step)
    return z.double(), (cond.double(),), (uncond.double(),)


def lora_by_hand(model):
    """[down, ..., up, ...]: PEFT's default, down ~ U(±1/√in), as kaiming_uniform_(a=√5) gives, and up = 0."""
    torch.manual_seed(5)
    weights = [model.get_submodule(name).weight for name in TARGETS]
    bounds = [1 / math.sqrt(w[0].numel()) for w in weights]
    down = [torch.empty(RANK, *w.shape[1:]).uniform_(-b, b) for w, b in zip(weights, bounds, strict=True)]
    return down + [torch.zeros(len(w), RANK, *[1] * (w.ndim - 2)) for w in weights]


def by_hand(config, prediction, model, start, weights_of):
    """(losses, parameters, average, gradient norms) of the training; weights_of(parameters) are the network's."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = torch.cumprod(1 - betas, 0)

    def column(v):
        return v[:, None, None, None]

    def alpha_sigma(t):
        return column(kept[t].sqrt()), column((1 - kept[t]).sqrt())

    def x0_and_noise(output, x, t):
        alpha, sigma = alpha_sigma(t)
        if prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        if prediction == "v_prediction":
            return alpha * x - sigma * output, alpha * output + sigma * x
        return output, (x - alpha * output) / sigma

    def evaluate(parameters, x, t, cond, omega):
        return functional_call(model, weights_of(parameters), (x, t, (cond,), omega))

    def consistent(parameters, x, t, cond, omega):
        x0, _ = x0_and_noise(evaluate(parameters, x, t, cond, omega), x, t)
        scaled = column(10.0 * t)
        return 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25).sqrt() * x0

    parameters = [p.clone().requires_grad_() for p in start]
    average = [p.detach().clone() for p in parameters]
    means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
    losses, norms = [], []
    for step in range(config.steps):
        z, (cond,), (uncond,) = data(step)
        draw = draw_step(config, z, SCHEDULE, step)
        t, t_next, omega, noise = draw.t, draw.t_next, draw.omega, draw.noise
        (alpha, sigma), (alpha_next, sigma_next) = alpha_sigma(t), alpha_sigma(t_next)
        x = alpha * z + sigma * noise
        with torch.no_grad():
            if config.objective == "lcd":
                x0, eps = x0_and_noise(evaluate(None, x, t, cond, None), x, t)
                x0_empty, eps_empty = x0_and_noise(evaluate(None, x, t, uncond, None), x, t)
                x0_guided = x0 + column(omega) * (x0 - x0_empty)
                x_next = alpha_next * x0_guided + sigma_next * (eps + column(omega) * (eps - eps_empty))
            else:
                x_next = alpha_next * z + sigma_next * noise
            target = parameters if config.target_decay is None else average
            goal = consistent(target, x_next, t_next, cond, omega)
        difference = consistent(parameters, x, t, cond, omega) - goal
        if config.distance == "huber":
            loss = ((difference**2 + config.huber_c**2).sqrt() - config.huber_c).mean()
        else:
            loss = (difference**2).mean()
        gradients = torch.autograd.grad(loss, parameters)
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        rise = min(1, (step + 1) / (config.warmup + 1))
        fall = config.decay_to + (1 - config.decay_to) * (1 + math.cos(math.pi * step / config.steps)) / 2
        rate = config.learning_rate * rise * fall
        with torch.no_grad():
            for p, g, mean, square, kept_average in zip(parameters, gradients, means, squares, average, strict=True):
                g = g * min(1, config.max_grad_norm / (norm + 1e-6))
                mean.copy_(0.9 * mean + 0.1 * g)
                square.copy_(0.999 * square + 0.001 * g**2)
                p.mul_(1 - rate * config.weight_decay)
                p.sub_(rate * mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))
                if config.target_decay is not None:
                    kept_average.copy_(config.target_decay * kept_average + (1 - config.target_decay) * p)
        losses.append(loss.item())
        norms.append(norm)
    return losses, parameters, average, norms


@pytest.mark.parametrize("kind", KINDS)
def test_twenty_steps_are_those_of_the_algorithms(kind):
    config, prediction = KINDS[kind]
    model, plain = network(), network()
    start = dict(plain.named_parameters())
    torch.manual_seed(5)
    if kind == "all weights":
        weights = FullWeights(model)
        begun = list(start.values())

        def weights_of(parameters):
            return start if parameters is None else dict(zip(start, parameters, strict=True))
    else:
        weights = inject_lora(model, TARGETS, RANK, ALPHA)
        begun = lora_by_hand(plain)

        def weights_of(parameters):
            merged = dict(start)
            if parameters is not None:
                for name, down, up in zip(TARGETS, parameters[:2], parameters[2:], strict=True):
                    key = f"{name}.weight"
                    delta = (up.flatten(1) @ down.flatten(1)).view_as(start[key])
                    merged[key] = start[key] + ALPHA / RANK * delta
            return merged

    losses = [p.loss for p in distill(model, weights, data, config, schedule=SCHEDULE, prediction=prediction)]
    expected, parameters, average, norms = by_hand(config, prediction, plain, begun, weights_of)
    assert min(norms) < config.max_grad_norm < max(norms)
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-7, atol=1e-9)
    for ours, theirs in zip(weights.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-8)
    for ours, theirs in zip(weights.average or [], average if config.target_decay else [], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-8)


@pytest.mark.bits
def test_a_lora_begins_as_pefts():
    """PEFT's own initialisation of its layers, from one state of the generator, bit for bit."""
    theirs = peft.get_peft_model(network(), peft.LoraConfig(r=RANK, target_modules=list(TARGETS)))
    layers = [module for module in theirs.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    torch.manual_seed(5)
    for layer in layers:
        layer.reset_lora_parameters("default", True)
    model = network()
    torch.manual_seed(5)
    ours = inject_lora(model, TARGETS, RANK)
    assert len(layers) == len(ours.names) == 2
    for i, layer in enumerate(layers):
        assert torch.equal(ours.down[i], layer.lora_A["default"].weight)
        assert torch.equal(ours.up[i], layer.lora_B["default"].weight) and not ours.up[i].any()
        assert ours.down[i].std() > 0.1
        assert ours.alphas[i] / RANK == 1
    assert isinstance(layers[0].get_base_layer(), nn.Conv2d)
