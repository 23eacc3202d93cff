"""Adapters, losses and the trainer of consistency distillation, on networks of a few weights."""

from pathlib import Path

import pytest
import torch
from torch import nn

from lcm_core.distill import DistillConfig, distill, draw_timesteps, huber, inject_lora, lcd_loss, lcf_loss
from lcm_core.distill.adapters import LCM_TARGETS
from lcm_core.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()


class Tiny(nn.Module):
    """An epsilon predictor of (x, t, (bias,)): one convolution, one linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.to_q = nn.Linear(4, 2)

    def forward(self, x, t, cond):
        h = torch.tanh(self.conv1(x) + t[:, None, None, None] / 1000)
        return self.to_q(h.movedim(1, 3)).movedim(3, 1) + cond[0][:, None, None, None]


def tiny(seed=0):
    torch.manual_seed(seed)
    return Tiny().requires_grad_(False)


def batch(size=3):
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(size, 2, 4, 4, generator=generator)
    return z, (torch.linspace(0.1, 0.5, size),), (torch.zeros(size),)


def test_adapter_starts_as_nothing_and_switches_off():
    model = tiny()
    x, cond, _ = batch()
    t = torch.tensor([1, 500, 999])
    plain = model(x, t, cond)
    adapter = inject_lora(model, ["to_q", "conv1"], rank=2, alpha=1)
    assert torch.equal(model(x, t, cond), plain)
    nn.init.ones_(adapter.up[0])
    assert not torch.allclose(model(x, t, cond), plain)
    with adapter.using(None):
        assert torch.equal(model(x, t, cond), plain)
    adapter.remove()
    assert torch.equal(model(x, t, cond), plain)


def test_adapter_adds_the_delta_of_its_vector():
    model, merged = tiny(), tiny()
    adapter = inject_lora(model, ["to_q", "conv1"], rank=2, alpha=0.5)
    for up in adapter.up:
        nn.init.normal_(up)
    vector = adapter.vector()
    for name in ("conv1", "to_q"):
        merged.get_submodule(name).weight += vector.delta(name)
    x, cond, _ = batch()
    t = torch.tensor([1, 500, 999])
    torch.testing.assert_close(model(x, t, cond), merged(x, t, cond))


@pytest.mark.parametrize(
    ("targets", "rank", "said"), [(["nothing"], 4, "conv1"), (["to_q"], 0, "rank 0"), (["grouped"], 4, "grouped")]
)
def test_adapter_errors(targets, rank, said):
    model = tiny()
    model.grouped = nn.Conv2d(4, 4, 1, groups=2)
    with pytest.raises(ValueError, match=said):
        inject_lora(model, targets, rank)


def test_targets_of_the_paper_give_its_parameters():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        adapter = inject_lora(unet, LCM_TARGETS, rank=64)
    assert len(adapter.names) == 278
    assert sum(p.numel() for p in adapter.parameters()) == 67_252_224


def test_draw_timesteps():
    t, t_next = draw_timesteps(500, links=50, generator=torch.Generator().manual_seed(0))
    assert set((t + 1).tolist()) <= set(range(20, 1001, 20))
    assert torch.equal(t_next, (t - 20).clamp(min=0))
    free, _ = draw_timesteps(500, links=10, on_grid=False)
    assert free.min() >= 1 and free.max() <= 999
    with pytest.raises(ValueError, match="links 0"):
        draw_timesteps(1, links=0)


def test_huber():
    a, b = torch.tensor([3.0, 1.0]), torch.tensor([3.0, 1.0 + 0.004])
    assert huber(a, a).item() == pytest.approx(0, abs=1e-9)
    assert huber(a, b, c=0.003).item() == pytest.approx(0.001, rel=1e-3)


def test_lcd_loss_agrees_with_the_scripts_functions():
    """The same step as diffusers' LCM-LoRA script writes it: predicted_origin, DDIMSolver and boundary scalings."""
    model, teacher = tiny(0), tiny(1)
    z, cond, uncond = batch()
    t, t_next = torch.tensor([19, 519, 999]), torch.tensor([0, 499, 979])
    omega, noise = torch.tensor([5.0, 7.5, 15.0]), torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    draws = {"t": t, "t_next": t_next, "omega": omega, "noise": noise}
    loss = lcd_loss(model, teacher, model, z, cond, uncond, **draws, schedule=SCHEDULE)

    abar = SCHEDULE.alphas_cumprod
    alpha, sigma = (v.float()[:, None, None, None] for v in (abar[t].sqrt(), (1 - abar[t]).sqrt()))
    alpha_n, sigma_n = (v.float()[:, None, None, None] for v in (abar[t_next].sqrt(), (1 - abar[t_next]).sqrt()))

    def f(eps, x, t, alpha, sigma):
        s = t.float()[:, None, None, None] * 10
        c_skip, c_out = 0.25 / (s**2 + 0.25), s / (s**2 + 0.25) ** 0.5
        return c_skip * x + c_out * (x - sigma * eps) / alpha

    x = alpha * z + sigma * noise
    cond_eps, uncond_eps = teacher(x, t, cond), teacher(x, t, uncond)
    w = omega[:, None, None, None]
    x0_c, x0_u = (x - sigma * cond_eps) / alpha, (x - sigma * uncond_eps) / alpha
    x_next = alpha_n * (x0_c + w * (x0_c - x0_u)) + sigma_n * (cond_eps + w * (cond_eps - uncond_eps))
    online = f(model(x, t, cond), x, t, alpha, sigma)
    goal = f(model(x_next, t_next, cond), x_next, t_next, alpha_n, sigma_n)
    expected = (((online - goal) ** 2 + 0.001**2).sqrt() - 0.001).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_lcf_loss_of_a_perfect_model_is_zero():
    """A model that knows the noise maps both points to the data."""
    z, cond, _ = batch()
    noise = torch.randn(z.shape)
    t, t_next = torch.tensor([200, 500, 900]), torch.tensor([100, 400, 800])

    def oracle(x, t, cond):
        return noise

    loss = lcf_loss(oracle, oracle, z, cond, t=t, t_next=t_next, noise=noise, schedule=SCHEDULE)
    assert loss.item() == pytest.approx(0, abs=1e-4)
    off = lcf_loss(lambda x, t, c: 0 * x, oracle, z, cond, t=t, t_next=t_next, noise=noise, schedule=SCHEDULE)
    assert off.item() > 0.1


def run(steps: int, state: Path | None, stop_after: int | None = None, decay=0.9) -> tuple[list[float], torch.Tensor]:
    model = tiny()
    torch.manual_seed(5)
    adapter = inject_lora(model, ["to_q", "conv1"], rank=2)
    config = DistillConfig(steps=steps, learning_rate=1e-2, omega=(1, 2), target_decay=decay, save_every=2)
    losses = []
    for progress in distill(model, adapter, [batch()] * steps, config, schedule=SCHEDULE, state=state):
        losses.append(progress.loss)
        if progress.step == stop_after:
            break
    return losses, torch.cat([p.detach().flatten() for p in adapter.parameters()])


@pytest.mark.parametrize("decay", [None, 0.9])
def test_distill_learns_and_resumes_bit_for_bit(tmp_path, decay):
    whole, weights = run(12, None, decay=decay)
    first, _ = run(12, tmp_path / "state.pt", stop_after=7, decay=decay)
    rest, resumed = run(12, tmp_path / "state.pt", decay=decay)
    assert first == whole[:7]
    assert rest == whole[6:]
    assert torch.equal(weights, resumed)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


def test_distill_lowers_the_loss():
    losses, _ = run(150, None, decay=None)
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@pytest.mark.parametrize("bad", [{"steps": 0}, {"omega": (3.0, 1.0)}, {"learning_rate": 0.0}, {"target_decay": 1.0}])
def test_config_errors(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        DistillConfig(**bad)
