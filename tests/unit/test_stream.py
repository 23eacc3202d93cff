"""lcm_core.consistency.stream_sample against multistep_sample, frame by frame."""

import itertools
import math

import pytest
import torch

from lcm_core.consistency import consistency_function, multistep_sample, stream_sample
from lcm_core.noise import step_noise
from lcm_core.schedule import NoiseSchedule, lcm_timesteps

SD = NoiseSchedule.scaled_linear()
SHAPE = (2, 3, 3)


def network(x, t):
    return 0.6 * x + 0.2 * torch.sin(2 * x + t.view(-1, 1, 1, 1) / 100)


def vp(x, levels):
    t = torch.tensor(levels)
    return consistency_function(network(x, t), x, t, SD)


def flow(x, levels):
    sigma = torch.tensor(levels, dtype=x.dtype)
    return x - sigma.view(-1, 1, 1, 1) * network(x, 1000 * sigma)


KINDS = {
    "vp": (vp, SD.process, lcm_timesteps),
    "flow": (flow, lambda sigma: (1 - sigma, sigma), lambda steps: [1 - i / steps for i in range(steps)]),
}


def frame(f):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(f), dtype=torch.float64)


def noise(f, i):
    return step_noise((1, *SHAPE), 11, i, [f])[0]


def alone(f, denoise, levels, process, gamma):
    """Frame f of multistep_sample, by itself."""
    return multistep_sample(
        lambda x, level: denoise(x, [level]),
        frame(f)[None],
        levels,
        process,
        noise=lambda i: noise(f, i)[None],
        gamma=gamma,
    )[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gamma", [1.0, 0.3, 0.0])
@pytest.mark.parametrize(("frames", "steps"), [(0, 3), (1, 1), (1, 4), (2, 4), (4, 4), (5, 1), (7, 3)])
def test_each_frame_equals_the_frame_alone_at_one_evaluation_a_frame(kind, gamma, frames, steps):
    denoise, process, grid = KINDS[kind]
    levels, evaluated, drawn = grid(steps), [], []

    def record(x, rows):
        assert x.shape == (len(rows), *SHAPE)
        evaluated.append(rows)
        return denoise(x, rows)

    def record_noise(f, i):
        drawn.append((f, i))
        return noise(f, i)

    streamed = list(stream_sample(record, map(frame, range(frames)), levels, process, noise=record_noise, gamma=gamma))
    assert len(streamed) == frames
    for f, ours in enumerate(streamed):
        torch.testing.assert_close(ours, alone(f, denoise, levels, process, gamma), rtol=0, atol=1e-6)
    assert len(evaluated) == (frames + steps - 1 if frames else 0)
    for i, rows in enumerate(evaluated):
        assert rows == [levels[i - f] for f in range(frames) if 0 <= i - f < steps]
    assert sorted(drawn) == [(f, i) for f in range(frames) for i in range(steps - 1) if gamma > 0]


def test_an_endless_stream_draws_one_frame_an_evaluation():
    drawn, evaluated, levels = [], [], lcm_timesteps(3)

    def camera():
        for f in itertools.count():
            drawn.append(f)
            yield frame(f)

    stream = stream_sample(
        lambda x, rows: evaluated.append(rows) or vp(x, rows), camera(), levels, SD.process, noise=noise
    )
    assert not drawn
    for f in range(6):
        torch.testing.assert_close(next(stream), alone(f, vp, levels, SD.process, 1.0), rtol=0, atol=1e-6)
        assert len(drawn) == len(evaluated) == f + len(levels)


def test_a_tensor_is_a_sequence_of_frames_and_keeps_its_dtype():
    frames = torch.stack([frame(f) for f in range(3)]).half()
    streamed = list(stream_sample(lambda x, t: vp(x.float(), t), frames, [999, 499], SD.process, noise=noise))
    assert [(x.dtype, x.shape) for x in streamed] == [(torch.float16, SHAPE)] * 3


@pytest.mark.bits
def test_a_users_intermediate_level_is_taken():
    options = {"noise": noise, "gamma": 0.5}
    levels, frames = [999, 499, 249], [frame(0), frame(1)]
    usual = list(stream_sample(vp, frames, levels, SD.process, **options))
    halved = list(stream_sample(vp, frames, levels, SD.process, intermediate=lambda t, gamma: t // 2, **options))
    lower = list(stream_sample(vp, frames, levels, SD.process, intermediate=lambda t, gamma: t // 4, **options))
    assert torch.equal(usual[1], halved[1]) and not torch.equal(usual[1], lower[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": []}, "levels is empty; give at least one level"),
        ({"gamma": 1.1}, r"gamma 1.1 is outside \[0, 1\]"),
        ({"gamma": -0.1}, "gamma -0.1 is outside"),
        ({"gamma": math.nan}, "gamma nan is outside"),
        ({"levels": [1.0, 0.0, 0.0], "gamma": 0.0}, "level 0.0 has sigma 0"),
        ({"gamma": 0.5, "intermediate": lambda sigma, gamma: 1.0}, "intermediate gave 1.0 for level 0.5"),
    ],
)
def test_what_cannot_be_streamed_is_refused(arguments, message):
    arguments = {"levels": [1.0, 0.5], "noise": noise, **arguments}
    with pytest.raises(ValueError, match=message):
        list(stream_sample(flow, [frame(0)], process=lambda sigma: (1 - sigma, sigma), **arguments))
