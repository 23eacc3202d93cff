"""Schedules of a vector's strength: what they say of each step, and what they refuse."""

import math
import re

import pytest

from lcm_core.strengths import factor_at, parse_strengths, step_factors


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("", [1, 1, 1, 1]),
        ("0: 0.5", [0.5, 0.5, 0.5, 0.5]),
        ("0: 0, 0.25: 0.8", [0, 0.8, 0.8, 0.8]),
        ("0:0;0.26:0.8", [0, 0, 0.8, 0.8]),
        ("step 1: 1\nstep 3: -2", [1, 1, -2, -2]),
        ("STEP2: 3, step1: 0,", [0, 3, 3, 3]),
        ("0: 0, step 2: 1, 0.5: 2", [0, 1, 2, 2]),
        ("0: 0, 0.1: 1, 0.2: 2", [0, 2, 2, 2]),
        ("0: 0, 0.99: 1", [0, 0, 0, 0]),
    ],
)
def test_each_step_has_the_last_change_before_it(text, factors):
    assert step_factors(parse_strengths(text), 4) == factors


@pytest.mark.parametrize("steps", range(1, 51))
def test_shares_are_those_of_guidance(steps):
    """A share k/n of n steps begins at step k, whatever its rounding."""
    for k in range(steps):
        assert step_factors(parse_strengths(f"0: 0, {k / steps!r}: 1" if k else "0: 1"), steps) == [0] * k + [1] * (
            steps - k
        )


def test_levels_between_sigmas_are_of_the_step_that_began():
    changes, sigmas = parse_strengths("step 1: 1, step 2: 2, step 3: 3"), [14.6, 3.8, 1.6, 0.0]
    levels = {
        20.0: 1,
        14.6: 1,
        3.81: 1,
        math.nextafter(3.8, 4): 2,
        3.8: 2,
        math.nextafter(3.8, 3): 2,
        1.7: 2,
        1.6: 3,
        0: 3,
    }
    assert {level: factor_at(changes, level, sigmas) for level in levels} == levels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.8", "'0.8'"),
        ("0: a", "'a', which is no finite number"),
        ("0: nan", "'nan'"),
        ("0: inf", "'inf'"),
        ("2: 0.8", "'2: 0.8', and a share is 0 or more and below 1"),
        ("1: 0.8", "below 1"),
        ("-0.1: 1", "'-0.1: 1', and a share"),
        ("step 0: 1", "'step 0: 1', and steps are whole numbers from 1"),
        ("step 1.5: 1", "whole numbers from 1"),
        ("0: 11", "'0: 11'; a strength is between −10 and 10"),
        ("0.25: 1", "begins with '0.25: 1' and leaves the steps before it open"),
        ("step 2: 1", "leaves the steps before it open"),
        ("0: 0, 0.5: 1, 0.50: 2", "'0.50: 2' begins where another change does"),
        ("0: 0," * 1001, "1,001 changes and takes 1,000"),
    ],
)
def test_refuses(text, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_strengths(text)


def test_refuses_a_step_that_there_is_not():
    changes = parse_strengths("step 1: 0, step 5: 1")
    with pytest.raises(ValueError, match=re.escape("names step 5 and there are 4 steps; name one of 1 to 4")):
        step_factors(changes, 4)
    assert step_factors(changes, 5) == [0, 0, 0, 0, 1]
