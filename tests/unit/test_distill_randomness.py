"""What a training step draws: one stream for its noise, one for timesteps and ω, one for the user in each process."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from tiny_training import CONFIG, SCHEDULE, batches, tiny

from lcm_core.distill import distill, trainer
from lcm_core.distill.randomness import draw_step, stream_seed
from lcm_core.noise import step_noise

pytestmark = pytest.mark.usefixtures("one_thread")
COUNT = 2000


def drawn(monkeypatch, config, rank=0, processes=1):
    """(what `batches` draws from the global generator in each step, the step's Draw) of a training in one process."""
    alone = SimpleNamespace(process_index=rank, num_processes=processes, reduce=lambda flat, reduction: flat)
    user, draws = [], []

    def noted(step):
        user.append(torch.randn(COUNT))
        return batches(step)

    def noted_draw(*args):
        draws.append(draw_step(*args))
        return draws[-1]

    monkeypatch.setattr(trainer, "draw_step", noted_draw)
    model, weights = tiny()
    list(distill(model, weights, noted, config, schedule=SCHEDULE, accelerator=alone))
    return user, draws


def test_no_stream_is_a_part_of_another(monkeypatch):
    """Values in common, as streams that are shifted against each other have: a few of random floats are by chance."""
    streams = []
    for seed in (0, 1, 2**22, 2**32):
        for rank in (0, 1):
            user, draws = drawn(monkeypatch, replace(CONFIG, seed=seed, steps=2), rank, 2)
            streams += user
            if rank == 0:
                streams += [draw.noise.flatten() for draw in draws]
    large = torch.zeros(8, 4, 16, 16)
    streams += [draw_step(replace(CONFIG, seed=seed), large, SCHEDULE, 0).noise.flatten() for seed in (0, 2**32)]
    streams += [step_noise((8, 4, 16, 16), 0, step).flatten() for step in (0, 1)]
    for i, a in enumerate(streams):
        for b in streams[:i]:
            assert torch.isin(a, b).sum() < 0.02 * len(a)


@pytest.mark.bits
def test_a_draw_depends_on_seed_and_step_alone(monkeypatch):
    config = replace(CONFIG, steps=3)
    _, alone = drawn(monkeypatch, config)
    for rank in (0, 1):
        _, shared = drawn(monkeypatch, config, rank, 2)
        for a, b in zip(alone, shared, strict=True):
            for name in ("t", "t_next", "omega", "noise"):
                assert torch.equal(getattr(a, name), getattr(b, name))
    z = torch.zeros(4, 2, 4, 4)
    larger = draw_step(config, torch.zeros(6, 2, 4, 4), SCHEDULE, 0)
    assert torch.equal(larger.noise[:4], draw_step(config, z, SCHEDULE, 0).noise)
    others = [replace(config, seed=seed) for seed in (1, 2**22, 2**32)]
    times = {tuple(draw_step(each, z, SCHEDULE, step).t.tolist()) for each in [config, *others] for step in (0, 1)}
    assert len(times) == 8


def test_seeds_of_streams_are_distinct_and_whole():
    seeds = {stream_seed(*of) for of in [(0, 1), (1, 0), (0, "1"), ("01",), (0, 1, 0), (2**32, 1), (0, 2**32 + 1)]}
    assert len(seeds) == 7 and all(0 <= seed < 2**64 for seed in seeds)
    assert max(stream_seed(i) for i in range(100)) > 2**63
