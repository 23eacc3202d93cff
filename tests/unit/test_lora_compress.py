"""What of a module's singular values a limit leaves, as sd-scripts' resize_lora.py has them."""

import math

import pytest
import torch

from lcm_core.lora import Factors, LoRAVector, combine


def spectrum(*values, shape=None):
    """A Delta W of given singular values."""
    g = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, len(values), generator=g, dtype=torch.float64))[0] for n in (9, 12))
    return Factors.of_matrices((v * torch.tensor(values).double()).T, u, shape or (9, 12))


@pytest.mark.parametrize("limits, kept", [
    ({}, 5),
    ({"sv_ratio": 4.0}, 3),  # above 10 / 4: 10, 6, 3
    ({"sv_ratio": 9.5}, 3),
    ({"sv_ratio": 1.0}, 1),
    ({"sv_cumulative": 0.8}, 3),  # 10 + 6 = 16 of 20.5 is .78
    ({"sv_cumulative": 1.0}, 5),
    ({"energy": 0.93}, 3),  # 100 + 36 = 136 of 146.25 is .9299
    ({"energy": 0.9}, 2),
    ({"sv_ratio": 100.0, "rank": 2}, 2),
    ({"sv_cumulative": 0.99, "sv_ratio": 3.0}, 2),
    ({"conv_rank": 1}, 5),
    ({"conv_rank": 1, "rank": 4}, 4),
])  # fmt: skip
def test_limits_by_singular_values(limits, kept):
    factors = spectrum(10.0, 6.0, 3.0, 1.0, 0.5)
    vector = LoRAVector({"unet.x": factors})
    small = vector.compress(**limits)
    assert small.rank == kept
    u, s, vh = torch.linalg.svd(factors.delta(), full_matrices=False)
    torch.testing.assert_close(small.delta("unet.x"), (u[:, :kept] * s[:kept]) @ vh[:kept])
    assert combine([vector], [1.0], **limits).rank == kept
    assert combine([vector], [1.0], "magnitude_prune", density=1.0, **limits).rank == kept


def test_convolutions_have_a_rank_of_their_own():
    vector = LoRAVector({
        "unet.linear": spectrum(3.0, 2.0, 1.0), "unet.conv": spectrum(3.0, 2.0, 1.0, shape=(9, 3, 2, 2)),
        "unet.point": spectrum(3.0, 2.0, 1.0, shape=(9, 12, 1, 1)),
    })  # fmt: skip
    for small in (
        vector.compress(rank=2, conv_rank=1),
        combine([vector], [1.0], rank=2, conv_rank=1),
        combine([vector], [1.0], "magnitude_prune", density=1.0, rank=2, conv_rank=1),
    ):
        assert {name: factors.rank for name, factors in small.modules.items()} == {
            "unet.linear": 2, "unet.conv": 1, "unet.point": 1,
        }  # fmt: skip
    assert combine([vector, vector], [1.0, 1.0], "magnitude_prune", conv_rank=1).modules["unet.linear"].rank == 6


@pytest.mark.parametrize("limits, message", [
    ({"sv_ratio": 0.5}, "sv_ratio is 0.5; it is a finite number of at least 1, such as 10"),
    ({"sv_ratio": math.nan}, "sv_ratio is nan"),
    ({"sv_cumulative": 1.5}, r"sv_cumulative is 1.5; it is a share in \(0, 1\]"),
    ({"conv_rank": 0}, "conv_rank is 0; it must be a whole number, at least 1, such as 64"),
])  # fmt: skip
def test_limits_out_of_range(limits, message):
    for act in (LoRAVector().compress, lambda **given: combine([LoRAVector()], [1.0], **given)):
        with pytest.raises(ValueError, match=message):
            act(**limits)
