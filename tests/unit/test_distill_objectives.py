"""The objectives against the papers' equations written out, on networks of a few weights, in float64."""

import copy
import importlib
import math
import re
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from tiny_training import CONFIG, SCHEDULE, batches, tiny, train
from torch import nn

from lcm_core.distill import OBJECTIVES, DistillConfig, Draw, FullWeights, Problem, distill
from lcm_core.distill import objectives as folder
from lcm_core.distill.distances import DISTANCES, cauchy, huber_norm
from lcm_core.distill.objective import all_options, objective
from lcm_core.schedule import Flow, FlowSchedule

ROOT = Path(__file__).resolve().parents[2]
FLOW = FlowSchedule(Flow(3.0))
KINDS = [(SCHEDULE, "epsilon"), (SCHEDULE, "v_prediction"), (FLOW, "flow_prediction")]
OMEGA = torch.tensor([0.5, 2.0, 3.5, 5.0, 1.0], dtype=torch.float64)
UNIFORM = torch.tensor([0.0, 0.3, 0.5, 0.9, 0.7], dtype=torch.float64)
LINKS = 10


class Net(nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.mix = nn.Conv2d(2, 6, 3, padding=1).double(), nn.Conv2d(6, 2, 1).double()

    def forward(self, x, t, cond, omega=None):
        h = torch.tanh(self.conv(x) + t.to(x)[:, None, None, None] / 700)
        shift = 0 if omega is None else omega[:, None, None, None] / 10
        return self.mix(h) + cond[0][:, None, None, None] + shift


STUDENT, TEACHER, TARGET = Net(0), Net(1), Net(2)
COND, UNCOND = torch.linspace(0.1, 0.5, 5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
G = torch.Generator().manual_seed(3)
Z, NOISE = (torch.randn(5, 2, 4, 4, generator=G, dtype=torch.float64) for _ in range(2))


def points(schedule):
    """(t, t_next) at links of a tenth, on and off the grid, and the function (t) -> (α, σ) as columns."""
    if schedule is SCHEDULE:
        t, t_next = torch.tensor([999, 249, 260, 99, 640]), torch.tensor([899, 149, 160, 0, 540])
        kept = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
        return t, t_next, lambda t: (kept[t].sqrt()[:, None, None, None], (1 - kept[t]).sqrt()[:, None, None, None])
    share = torch.tensor([1.0, 0.25, 0.26, 0.1, 0.64], dtype=torch.float64)
    t, t_next = (3 * u / (1 + 2 * u) for u in (share, (share - 0.1).clamp(min=0)))
    return t, t_next, lambda t: ((1 - t)[:, None, None, None], t[:, None, None, None])


class Dense:
    """The quantities of the papers, each written out."""

    def __init__(self, schedule, prediction):
        self.t, self.t_next, self.alpha_sigma = points(schedule)
        self.schedule, self.prediction = schedule, prediction
        self.draw = Draw(self.t, self.t_next, OMEGA, NOISE, UNIFORM)
        self.x = self.noised(self.t)

    def problem(self, **changes):
        parts = {"uncond": (UNCOND,), "draw": self.draw, **changes}
        return Problem(
            STUDENT, TEACHER, TARGET, Z, (COND,), schedule=self.schedule, prediction=self.prediction,
            distance=lambda a, b: (a - b).square().mean(), links=LINKS, **parts,
        )  # fmt: skip

    def noised(self, t):
        alpha, sigma = self.alpha_sigma(t)
        return alpha * Z + sigma * NOISE

    def both(self, output, x, t):
        """(x̂₀, ε̂)."""
        alpha, sigma = self.alpha_sigma(t)
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        if self.prediction == "v_prediction":
            return alpha * x - sigma * output, alpha * output + sigma * x
        return x - sigma * output, x + (1 - sigma) * output

    def ddim(self, output, x, t, t_end):
        x0, noise = self.both(output, x, t)
        alpha, sigma = self.alpha_sigma(t_end)
        return alpha * x0 + sigma * noise

    def f(self, net, x, t):
        x0, _ = self.both(net(x, t, (COND,), OMEGA), x, t)
        if self.schedule is FLOW:
            return x0
        scaled = 10.0 * t.double()[:, None, None, None]
        return 0.25 / (scaled**2 + 0.25) * x + scaled / (scaled**2 + 0.25).sqrt() * x0

    def taught(self, t_end):
        w = OMEGA[:, None, None, None]
        ends = [self.ddim(TEACHER(self.x, self.t, (c,)), self.x, self.t, t_end) for c in (COND, UNCOND)]
        return (1 + w) * ends[0] - w * ends[1]

    def jump(self, net, x, t, t_end):
        return self.ddim(net(x, t, (COND,), OMEGA), x, t, t_end)


def mean_square(a, b):
    return ((a - b) ** 2).mean()


def agree(loss, expected):
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(v, STUDENT.parameters()) for v in (loss, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_lcd_and_lcf(schedule, prediction):
    dense = Dense(schedule, prediction)
    for name, point in (("lcd", dense.taught(dense.t_next)), ("lcf", dense.noised(dense.t_next))):
        goal = dense.f(TARGET, point, dense.t_next).detach()
        agree(OBJECTIVES[name](dense.problem()), mean_square(dense.f(STUDENT, dense.x, dense.t), goal))


def edges(schedule, phases):
    """The edge below each t, by hand: the last of the ⌊m·10/phases⌋-th points of ten that is below."""
    shares = {1: [0, 0, 0, 0, 0], 2: [0.5, 0, 0, 0, 0.5], 4: [0.7, 0.2, 0.2, 0, 0.5]}[phases]
    shares = torch.tensor(shares, dtype=torch.float64)
    if schedule is FLOW:
        return 3 * shares / (1 + 2 * shares)
    return (shares * 1000).round().long().sub(1).clamp(min=0)


@pytest.mark.parametrize("phases", [1, 2, 4])
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_pcm_ends_at_the_phase_s_edge(schedule, prediction, phases):
    dense, edge = Dense(schedule, prediction), edges(schedule, phases)
    t_next = torch.maximum(dense.t_next, edge)
    assert (t_next < dense.t).all() and (phases < 4 or (t_next > dense.t_next).any())
    x_next = dense.taught(t_next)
    goal = dense.jump(TARGET, x_next, t_next, edge)
    at_edge = (t_next == edge)[:, None, None, None]
    goal = torch.where(at_edge, x_next, goal).detach()
    loss = OBJECTIVES["pcm"](dense.problem(), phases=phases)
    agree(loss, mean_square(dense.jump(STUDENT, dense.x, dense.t, edge), goal))


@pytest.mark.parametrize("least", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_tcd_ends_at_a_random_point_below(schedule, prediction, least):
    dense = Dense(schedule, prediction)
    left = (1 - least) * UNIFORM  # 1 − γ
    if schedule is FLOW:
        share = dense.t_next / (3 - 2 * dense.t_next) * left
        s = 3 * share / (1 + 2 * share)
    else:
        s = ((left * (dense.t_next + 1) + 1e-6).floor().long() - 1).clamp(min=0)
    x_next = dense.taught(dense.t_next)
    at_end = (s == dense.t_next)[:, None, None, None]
    goal = torch.where(at_end, x_next, dense.jump(TARGET, x_next, dense.t_next, s)).detach()
    loss = OBJECTIVES["tcd"](dense.problem(), least_gamma=least)
    agree(loss, mean_square(dense.jump(STUDENT, dense.x, dense.t, s), goal))
    assert least < 1 or not s.any()


@pytest.mark.parametrize("on_data", [False, True])
@pytest.mark.parametrize("step", [0, 249, 250, 1500])
@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_ect_shortens_its_links(schedule, prediction, step, on_data):
    dense = Dense(schedule, prediction)
    alpha, sigma = (v.flatten() for v in dense.alpha_sigma(dense.t))
    time = sigma if schedule is FLOW else sigma / alpha
    stage = math.ceil((step + 1) / 250)
    r = time * (1 - (1 + 8 / (1 + torch.exp(time))) / 2**stage).clamp(min=0)
    if schedule is FLOW:
        t_next = r
    else:
        alphas, sigmas = (v.flatten() for v in dense.alpha_sigma(torch.arange(1000)))
        t_next = torch.tensor([max(0, int(((sigmas / alphas) <= each).sum()) - 1) for each in r])
    assert (t_next < dense.t).all() and (stage > 1 or (t_next == 0).any()) and (stage < 7 or (t_next > 0).all())
    point = dense.noised(t_next) if on_data else dense.taught(t_next)
    goal = dense.f(TARGET, point, t_next).detach()
    loss = OBJECTIVES["ect"](dense.problem(draw=replace(dense.draw, step=step)), on_data=on_data)
    agree(loss, mean_square(dense.f(STUDENT, dense.x, dense.t), goal))


@pytest.mark.parametrize(("schedule", "prediction"), KINDS)
def test_guided_regression_and_the_diffusion_loss(schedule, prediction):
    dense = Dense(schedule, prediction)
    w = OMEGA[:, None, None, None]
    x0, empty = (dense.both(TEACHER(dense.x, dense.t, (c,)), dense.x, dense.t)[0] for c in (COND, UNCOND))
    goal = ((1 + w) * x0 - w * empty).detach()
    agree(OBJECTIVES["guided"](dense.problem()), mean_square(dense.f(STUDENT, dense.x, dense.t), goal))
    early = [1, 3]  # of shares 1, .25, .26, .1 and .64 those up to a quarter
    f = dense.f(STUDENT, dense.x, dense.t)
    agree(OBJECTIVES["diffusion"](dense.problem()), ((f - Z)[early] ** 2).mean((1, 2, 3)).sum() / 5)


def test_a_teacher_without_uncond_is_not_guided():
    dense = Dense(FLOW, "flow_prediction")
    problem = dense.problem(uncond=())
    plain = dense.ddim(TEACHER(dense.x, dense.t, (COND,)), dense.x, dense.t, dense.t_next)
    torch.testing.assert_close(problem.taught(dense.t_next), plain)
    torch.testing.assert_close(problem.taught_x0(), dense.both(TEACHER(dense.x, dense.t, (COND,)), dense.x, dense.t)[0])


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("schedule", "prediction"), [KINDS[0], KINDS[2]])
def test_a_batch_on_another_device_stays_there(name, schedule, prediction):
    """The meta device, which takes no tensor of the CPU, stands for it; what is drawn is on the CPU."""
    nets = [copy.deepcopy(net).to("meta") for net in (STUDENT, TEACHER, TARGET)]

    def on_device(net, x, t, cond, omega):
        return net(x, t.to(x.device), cond, None if omega is None else omega.to(x.device))

    dense = Dense(schedule, prediction)
    draw = replace(dense.draw, noise=NOISE.to("meta"))
    problem = Problem(
        *(partial(on_device, net) for net in nets), Z.to("meta"), (COND.to("meta"),), (UNCOND.to("meta"),), draw,
        schedule, prediction,
    )  # fmt: skip
    loss = OBJECTIVES[name](problem)
    loss.backward()
    assert loss.is_meta and all(p.grad.is_meta for p in nets[0].parameters())


def test_cond_and_uncond_of_other_lengths_go_apart():
    """The teacher reads the mean of its tokens, of which the empty prompt has fewer."""
    dense = Dense(FLOW, "flow_prediction")
    seen = []

    def by_mean(x, t, cond, omega):
        seen.append(cond[0].shape)
        return TEACHER(x, t, (cond[0].mean(1),))

    long, short = COND[:, None].expand(5, 4), UNCOND[:, None].expand(5, 2)
    problem = replace(dense.problem(), teacher=by_mean, cond=(long,), uncond=(short,))
    torch.testing.assert_close(problem.taught(dense.t_next), dense.taught(dense.t_next))
    assert seen == [(5, 4), (5, 2)]


def test_distances():
    a, b = Z, NOISE
    square = ((a - b) ** 2).sum((1, 2, 3))
    count, c = a[0].numel(), 0.3
    expected = (square + (c * math.sqrt(count)) ** 2).sqrt() - c * math.sqrt(count)
    torch.testing.assert_close(huber_norm(a, b, c), expected.mean() / math.sqrt(count))
    torch.testing.assert_close(cauchy(a, b, c), torch.log(1 + square / (2 * c**2 * count)).mean())
    for name, distance in DISTANCES.items():
        near = a + 1e-5 * b
        ratio = distance(a, a + 2e-5 * b, c) / distance(a, near, c)
        assert ratio == pytest.approx(4, rel=1e-3), name
        assert distance(a, a, c) == 0


def test_terms_are_added_and_the_warm_start_regresses():
    """The first losses of trainings that share seed and start: the sum of two, and the regression's own."""
    once = {name: train(replace(CONFIG, objective=name), stop_after=1, dropout=0)[0][0] for name in OBJECTIVES}
    both = replace(CONFIG, terms={"diffusion": 0.5, "guided": 2.0})
    expected = once["lcd"] + 0.5 * once["diffusion"] + 2 * once["guided"]
    assert train(both, stop_after=1, dropout=0)[0][0] == pytest.approx(expected, rel=1e-5)
    warm, _ = train(replace(CONFIG, warm_start=3), dropout=0)
    regression, _ = train(replace(CONFIG, objective="guided"), dropout=0)
    assert warm[:3] == regression[:3] and warm[3:] != regression[3:]


def test_an_objective_s_steps_begin_after_the_warm_start(monkeypatch):
    seen = []

    def noted(problem, **options):
        seen.append((problem.draw.step, options))
        return problem.consistent.mean()

    monkeypatch.setitem(OBJECTIVES, "ect", replace(OBJECTIVES["ect"], loss=noted))
    config = replace(CONFIG, steps=4, warm_start=2, objective="ect", options={"shrink": 4.0})
    train(config)
    assert seen == [(step, {"stage_steps": 250, "shrink": 4.0, "on_data": False}) for step in (0, 1)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_learns(name):
    """The losses of the last steps are below those that the same draws have without learning."""

    def last(rate):
        config = replace(CONFIG, objective=name, steps=150, learning_rate=rate, distance="l2")
        model, _ = tiny(dropout=0)
        weights = FullWeights(model)
        steps = distill(model, weights, lambda step: batches(0), config, schedule=SCHEDULE)
        return sum(progress.loss for progress in islice(steps, 100, None))

    assert last(3e-3) < 0.9 * last(1e-12)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"objective": "pcm", "options": {"phases": 0}}, r"phases is 0; it is the number of phases.*in \[1, 64\]"),
        ({"options": {"phases": 2}}, "lcd have no option phases; the options: none"),
        ({"terms": {"diffusion": 0.0}}, "terms {'diffusion': 0.0} must be weights above 0"),
        ({"terms": {"noise": 1.0}}, "must be weights above 0 of diffusion, ect"),
        ({"warm_start": 1001}, "warm_start 1001 must be 0 … 1000"),
        ({"objective": "tcd", "options": {"least_gamma": math.nan}}, "least_gamma is nan"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given, said):
    with pytest.raises(ValueError, match=said):
        DistillConfig(**given)


def test_a_guided_teacher_needs_the_empty_prompt():
    def without(step):
        z, cond, _ = batches(step)
        return z, cond, ()

    said = r"omega \(1, 2\) guides the teacher, and there is no conditioning without prompt"
    with pytest.raises(ValueError, match=said):
        next(distill(*tiny(), without, CONFIG, schedule=SCHEDULE))
    for config in (replace(CONFIG, omega=(0, 0)), replace(CONFIG, objective="lcf", terms={"diffusion": 1.0})):
        assert math.isfinite(next(distill(*tiny(), without, config, schedule=SCHEDULE)).loss)


def test_places_and_names_are_given_once():
    assert [option.place for option, _ in all_options().values()] == list(range(1, len(all_options()) + 1))
    with pytest.raises(ValueError, match="an objective lcd is there already"):

        @objective()
        def lcd(problem):
            """Another."""


def test_the_document_s_new_objective_is_one_new_file(tmp_path, monkeypatch):
    """The file of docs/extending.md in the package: the config and the trainer have it, with its option."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text[text.index("## An objective in one new file") :]
    source = re.search(r"^```python\n(.*?)^```", section, re.M | re.S)[1]
    (tmp_path / "anchored.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr(folder, "__path__", [*folder.__path__, str(tmp_path)])
    importlib.import_module(f"{folder.__name__}.anchored")
    try:
        config = replace(CONFIG, objective="anchored", options={"anchor": 0.25})
        dense = Dense(SCHEDULE, "epsilon")
        f, x_next = dense.f(STUDENT, dense.x, dense.t), dense.taught(dense.t_next)
        goal = 0.75 * dense.f(TARGET, x_next, dense.t_next).detach() + 0.25 * Z
        agree(OBJECTIVES["anchored"](dense.problem(), **config.resolved), mean_square(f, goal))
        assert all(map(math.isfinite, train(config)[0]))
        with pytest.raises(ValueError, match=r"anchor is 2; it is the data's share of the target, in \[0, 1\]"):
            replace(config, options={"anchor": 2})
    finally:
        OBJECTIVES.pop("anchored", None)
