"""The trainer on networks of a few weights: learning, resuming after a kill, several processes, and what goes wrong."""

import copy
import logging
import math
import os
import signal
import socket
import subprocess
import sys
import types
from dataclasses import replace
from itertools import islice

import pytest
import tiny_training
import torch
from tiny_training import CONFIG, KINDS, SCHEDULE, Tiny, batches, tiny, train
from torch import nn

from lcm_core.distill import DistillConfig, distill, inject_lora
from lcm_core.distill.optimizers import OPTIMIZERS, make_optimizer
from lcm_core.distill.state import read_losses

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.bits
@pytest.mark.parametrize("kind", KINDS)
def test_leaving_and_resuming_changes_nothing(tmp_path, kind):
    config, state = KINDS[kind], tmp_path / "state.safetensors"
    whole, weights = train(config, kind=kind)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    first, _ = train(config, state, kind, stop_after=5)
    rest, resumed = train(config, state, kind)
    assert first + rest == whole == read_losses(state)
    assert torch.equal(weights, resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]
    assert train(config, state, kind)[0] == []
    if config.decay_to == 1:
        longer = train(replace(config, steps=13), state, kind)[0]
        assert len(longer) == 1 and math.isfinite(longer[0])
    torch.manual_seed(99)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.bits
def test_killed_and_resumed_it_gives_the_same_losses(tmp_path):
    """SIGKILL, at a moment that nobody chose, of a run that saves after every other step."""
    state = tmp_path / "state.safetensors"
    with subprocess.Popen(
        [sys.executable, tiny_training.__file__, str(state), "1000000", "0.1"], stdout=subprocess.PIPE, text=True
    ) as process:
        before = [float(line) for line in islice(process.stdout, 25)]
        process.send_signal(signal.SIGKILL)
        before += [float(line) for line in process.stdout if line.endswith("\n")]
    assert process.returncode == -signal.SIGKILL
    config = replace(CONFIG, steps=len(before) + 10)
    whole, weights = train(config)
    after, resumed = train(config, state)
    assert before == whole[:-10] and after == whole[-len(after) :]
    assert 10 <= len(after) <= 12 + 1
    assert torch.equal(weights, resumed)


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    """Accelerate's processes, as `accelerate launch` and `torchrun` start them, over gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    state = tmp_path / "state.safetensors"
    command = [sys.executable, tiny_training.__file__, str(state), "12", "0"]
    processes = [
        subprocess.Popen(
            command, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}, stdout=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    losses = [torch.tensor([float(line) for line in output.splitlines()]) for output in outputs]
    alone, weights = train(CONFIG, dropout=0)
    assert torch.equal(*losses)
    torch.testing.assert_close(losses[0], torch.tensor(alone), rtol=1e-5, atol=1e-6)
    rest, shared_weights = train(CONFIG, state, dropout=0)
    assert rest == []
    torch.testing.assert_close(shared_weights, weights, rtol=1e-4, atol=1e-5)


def test_each_process_takes_its_own_rows():
    """The first losses of two processes, each without the other, have that of one process as their mean."""
    first = []
    for rank in (0, 1):
        shared = types.SimpleNamespace(process_index=rank, num_processes=2, reduce=lambda flat, reduction: flat)
        model, weights = tiny(dropout=0)
        config = replace(CONFIG, accumulate=2)
        first.append(next(distill(model, weights, batches, config, schedule=SCHEDULE, accelerator=shared)).loss)
    assert first[0] != first[1]
    assert sum(first) / 2 == pytest.approx(train(CONFIG, stop_after=1, dropout=0)[0][0], rel=1e-5)
    for size, accumulate, least in ((4, 3, 6), (5, 1, 2)):
        config = replace(CONFIG, accumulate=accumulate)
        steps = distill(*tiny(), lambda step, n=size: batches(step, n), config, schedule=SCHEDULE, accelerator=shared)
        with pytest.raises(
            ValueError, match=rf"batch of {size} .* by 2 processes .*a multiple of 2, at least {least}$"
        ):
            next(steps)


def test_parts_of_a_batch_are_the_batch():
    whole, weights = train(CONFIG, dropout=0)
    parts, same = train(replace(CONFIG, accumulate=3), dropout=0)
    torch.testing.assert_close(torch.tensor(parts), torch.tensor(whole), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(same, weights, rtol=1e-4, atol=1e-5)


@pytest.mark.bits
@pytest.mark.parametrize("kind", ["LoRA", "LoRA without teacher", "all weights"])
def test_it_learns_and_leaves_the_model(kind):
    config = replace(KINDS[kind], steps=150, learning_rate=3e-3, warmup=0, decay_to=1.0)
    model, weights = tiny(kind, dropout=0)
    z, cond, _ = batches(0)

    def output(model):
        with torch.no_grad():
            return model(z, torch.tensor([9, 99, 499, 999]), cond, None)

    plain = output(copy.deepcopy(model).requires_grad_(False))
    losses = [step.loss for step in distill(model, weights, lambda step: batches(0), config, schedule=SCHEDULE)]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
    with weights.using(None):
        assert torch.equal(output(model), plain)
    if kind == "all weights":
        assert not torch.equal(weights.weights()["cond_proj.weight"], tiny()[0].cond_proj.weight)
    else:
        assert weights.vector().norm() > 0
        weights.remove()
        assert torch.equal(output(model), plain)


@pytest.mark.bits
def test_a_loss_that_is_not_a_number_stops_at_the_last_good_step(tmp_path):
    state, config = tmp_path / "state.safetensors", replace(CONFIG, target_decay=0.9, save_every=4)

    def spoilt(step):
        z, cond, uncond = batches(step)
        return (z * math.nan if step == 6 else z), cond, uncond

    model, weights = tiny()
    said = r"loss is nan .* at step 7, .* weights are those after step 6, and so is the state if one is kept; lower"
    with pytest.raises(FloatingPointError, match=said):
        list(distill(model, weights, spoilt, config, schedule=SCHEDULE, state=state))
    good, values = train(config, stop_after=6)
    assert len(good) == 6
    assert torch.equal(
        torch.cat([p.detach().flatten() for p in [*weights.parameters(), *weights.target, *weights.average]]), values
    )
    rest, _ = train(config, state)
    assert rest == train(config)[0][6:]


@pytest.mark.parametrize(
    ("change", "config", "said"),
    [
        (lambda z, c, u: (z[:0], (c[0][:0],), (u[0][:0],)), CONFIG, "no latents"),
        (lambda z, c, u: (z, (c[0][:3],), u), CONFIG, "4 latents, but conditioning for 3"),
        (lambda z, c, u: (z, c, (u[0][:1],)), CONFIG, "4 latents, but conditioning for 1"),
        (lambda z, c, u: (z, (c[0][:, None],), u), CONFIG, r"shapes \[\(1,\)\], but \[\(\)\] without"),
        (lambda z, c, u: (z, c, u), replace(CONFIG, accumulate=5), "batch of 4 .* in 5 parts"),
    ],
)
def test_batches_that_do_not_fit_are_refused(change, config, said):
    model, weights = tiny()
    with pytest.raises(ValueError, match=said):
        list(distill(model, weights, lambda step: change(*batches(step)), config, schedule=SCHEDULE))


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"omega": (3.0, 1.0)}, {"omega": (1.0, math.nan)}, {"learning_rate": 0.0}, {"target_decay": 1.0},
        {"solver": "euler"}, {"objective": "lcm"}, {"distance": "l1"}, {"autocast": "float8"}, {"accumulate": 0},
        {"optimizer": "sgd"}, {"save_every": 0}, {"seed": -1}, {"seed": 2**64},
    ],
)  # fmt: skip
def test_config_errors(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=name) as error:
        DistillConfig(**bad)
    assert str(value) in str(error.value)


@pytest.mark.bits
def test_adam_in_8_bits_is_bitsandbytes_or_an_error(monkeypatch, tmp_path):
    """What it keeps of a parameter is in a dict of its own, as bitsandbytes has it, and goes on with the training."""
    config = replace(CONFIG, optimizer="adamw8bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ImportError, match=r"optimizer adamw8bit needs bitsandbytes \(pip install bitsandbytes\)"):
        train(config)

    class AdamW8bit(torch.optim.AdamW):
        def state_dict(self):
            whole = super().state_dict()
            return {**whole, "state": {i: {"kept": entries} for i, entries in whole["state"].items()}}

        def load_state_dict(self, state_dict):
            state = {i: entries["kept"] for i, entries in state_dict["state"].items()}
            super().load_state_dict({**state_dict, "state": state})

    optim = types.ModuleType("bitsandbytes.optim")
    optim.AdamW8bit = AdamW8bit
    monkeypatch.setitem(sys.modules, "bitsandbytes", types.ModuleType("bitsandbytes"))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", optim)
    assert isinstance(make_optimizer(config, [nn.Parameter(torch.zeros(2))]), AdamW8bit)
    whole, state = train(config)[0], tmp_path / "state.safetensors"
    assert train(config, state, stop_after=5)[0] + train(config, state)[0] == whole


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if name != "adamw8bit"])
def test_optimizers_keep_the_bytes_that_the_table_says(name):
    (p,) = parameters = [nn.Parameter(torch.randn(50, 100))]
    optimizer = make_optimizer(DistillConfig(optimizer=name), parameters)
    p.grad = torch.randn(50, 100)
    optimizer.step()
    kept = [t for entries in optimizer.state_dict()["state"].values() for t in entries.values()]
    assert sum(t.nbytes for t in kept if isinstance(t, torch.Tensor) and t.numel() > 1) == OPTIMIZERS[name].state * 5000
    assert optimizer.param_groups[0].get("fused", name != "adamw") is True


def test_the_results_average_leaves_the_training_and_follows_it():
    """ema_n = d·ema + (1 − d)·θ_n, d = min(0.9, (1 + n)/(10 + n)); the losses are those without it."""
    config = replace(CONFIG, ema_decay=0.9)
    model, weights = tiny(dropout=0)
    expected, losses = [p.detach().double() for p in weights.parameters()], []
    for n, step in enumerate(distill(model, weights, batches, config, schedule=SCHEDULE)):
        losses.append(step.loss)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = [decay * e + (1 - decay) * p.detach() for e, p in zip(expected, weights.parameters(), strict=True)]
    assert losses == train(CONFIG, dropout=0)[0] and weights.target is None
    for ours, theirs in zip(weights.average, expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    names = sorted(weights.vector().modules)
    up = weights.vector().modules[names[0]].up
    assert any(torch.equal(up, average) for average in weights.average)


def test_a_teacher_that_is_an_lcm_is_warned_of(caplog):
    """It sees noise at the last timestep and draws another latent of the data."""
    z, cond, uncond = batches(0, size=16)

    class Lcm(Tiny):
        def forward(self, x, t, cond, omega):
            alpha, sigma = SCHEDULE.process(999)
            x0 = z.roll(1, 0) if len(x) == 16 and (t == 999).all() else torch.zeros_like(x)
            return (x - alpha * x0) / sigma + 0 * super().forward(x, t, cond, omega)

    model = Lcm().requires_grad_(False)
    weights = inject_lora(model, ["to_q"], 2)
    with caplog.at_level(logging.WARNING):
        next(distill(model, weights, lambda step: (z, cond, uncond), CONFIG, schedule=SCHEDULE))
    assert "seems to be an LCM" in caplog.text
    caplog.clear()
    train(CONFIG, stop_after=1)
    assert not caplog.records
