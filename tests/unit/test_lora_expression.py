import math
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lcm_core.lora import Factors, LoRAVector
from lcm_core.lora.expression import evaluate_expression, parse_expression

Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
VECTORS = {
    name: LoRAVector({Q: Factors(torch.eye(4), torch.tensor(up), 4.0)})
    for name, up in {
        "style": [[1.0, 0, 0, 2], [0, 3, 0, 0], [0, -1, 0, 0], [0, 0, 0, 4]],
        "lcm": [[0.0, 5, 0, 0], [0, 0, 0, 0], [7, 0, 1, 0], [0, 0, -2, 0]],
        "detail": [[1.0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [2, 2, 2, 2]],
        "zero": [[0.0] * 4] * 4,
    }.items()
}


@pytest.mark.parametrize("text, coefficients", [
    ("style", {"style": 1.0}),
    ("0.8*style + 1.0*lcm - 0.3*detail", {"style": 0.8, "lcm": 1.0, "detail": -0.3}),
    ("style*.8+lcm", {"style": 0.8, "lcm": 1.0}),
    ("-lcm -style", {"lcm": -1.0, "style": -1.0}),
    ("--+a", {"a": 1.0}),
    ("a - -2e-1*b", {"a": 1.0, "b": 0.2}),
    ("2*3*a /4", {"a": 1.5}),
    ("(a + 2*(b - a))/2", {"a": -0.5, "b": 1.0}),
    ("(1 + 1/2)*a*2", {"a": 3.0}),
    ("a + b - a", {"a": 0.0, "b": 1.0}),
    ("0*a", {"a": 0.0}),
    ("0.8*lcm-lora-sdv1-5.safetensors -2*sub/dir\\x_1.y", {"lcm-lora-sdv1-5.safetensors": 0.8, "sub/dir\\x_1.y": -2.0}),
    ("\"3d style's (v2)\" + 2*'C:\\a + b'/4", {"3d style's (v2)": 1.0, "C:\\a + b": 0.5}),
    ("_é +\n\t 1.*a", {"_é": 1.0, "a": 1.0}),
    ("(" * 100 + "a" + ")" * 100, {"a": 1.0}),
    ("-" * 9998 + "a", {"a": 1.0}),
    ("+".join(["a"] * 5000), {"a": 5000.0}),
])  # fmt: skip
def test_parses(text, coefficients):
    parsed = parse_expression(text)
    assert parsed == pytest.approx(coefficients, rel=1e-12) and list(parsed) == list(coefficients)


@pytest.mark.parametrize("text, message", [
    ("", r"^column 1 of the expression: found the end; allowed here: a number, a name, a name in quotes or '\('$"),
    ("  \n", "column 1 .*found the end"),
    ("0.8*", "column 5 .*found the end; allowed here: a number, a name"),
    ("a b", r"column 3 .*found name b; allowed here: \+ - \* / or the end$"),
    ("2style", r"column 2 .*found name style.*write 2\*style"),
    ("2 'x'", r"column 3 .*write 2\*'x'"),
    ("1.5.2*a", "column 4 .*found number .2"),
    ("a**2", r"column 3 .*found operator \*"),
    ("(a + b", r"column 7 .*found the end; allowed here: .*\) for the \( of column 1"),
    ("a)", r"column 2 .*found operator \)"),
    ("()", r"column 2 .*found operator \)"),
    ("a + ,b", r"column 5 .*found ','; allowed here: a number"),
    ("a ; import os", r"column 3 .*found ';'"),
    ("f(a)", r"column 2 .*found operator \("),
    ("'abc", "column 1 .*found ' that is not closed"),
    ("a + ' '", "column 5 .*found an empty name"),
    ("a*b", "column 2 .*found the product of two vectors; allowed here: a vector times or divided by a number$"),
    ("0.8*style-0.3*detail", "column 14 .*the product of two vectors.*space before the sign"),
    ("a- 2*b", "column 4 .*found number 2.*space before the sign"),
    ("2 /a", "column 3 .*found division by a vector"),
    ("a /(b)", "column 3 .*found division by a vector"),
    ("a /0", "column 3 .*found division by 0"),
    ("a /(1-1)", "column 3 .*found division by 0"),
    ("a + 1", r"column 3 .*found \+ between a number and a vector; allowed here: .*0.8\*style \+ 1.0\*lcm"),
    ("(1 - a)*2", "column 4 .*found - between a number and a vector"),
    ("0.8", "column 1 .*found an expression that is only the number 0.8"),
    ("1e999*a", "column 1 .*found a number that overflows"),
    ("1e200*a*1e200", "column 8 .*overflows"),
    ("a /1e-320", "column 3 .*overflows"),
    ("1e308*a + 1e308*a", "column 9 .*overflows"),
    ("a" * 10001, "column 10001 .*found character 10001 of 10001; allowed here: the end"),
    ("(" * 101 + "a" + ")" * 101, r"column 101 .*found '\(' inside 100 others"),
])  # fmt: skip
def test_refuses(text, message):
    with pytest.raises(ValueError, match=message):
        parse_expression(text)


# (text, exact coefficients) of linear forms, the coefficients computed the test's own way.
NUMBERS = st.builds(lambda n, k: Fraction(n, 2**k), st.integers(1, 64), st.integers(0, 4))


def added(a, b, sign):
    total = {name: a[1].get(name, 0) + sign * b[1].get(name, 0) for name in [*a[1], *b[1]]}
    return f"({a[0]} {'+' if sign > 0 else '-'} {b[0]})", total


def scaled(form, pattern, number):
    by = {"-{text}": -1, "{text} /{number}": 1 / number}.get(pattern, number)
    return pattern.format(text=form[0], number=float(number)), {name: c * by for name, c in form[1].items()}


PATTERNS = st.sampled_from(["-{text}", "{number}*{text}", "{text}*{number}", "{text} /{number}"])
FORMS = st.recursive(
    st.sampled_from(["a", "b-c", "d/e.safetensors"]).map(lambda name: (name, {name: Fraction(1)})),
    lambda inner: (
        st.builds(added, inner, inner, st.sampled_from([1, -1])) | st.builds(scaled, inner, PATTERNS, NUMBERS)
    ),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(FORMS)
def test_every_linear_form_has_its_exact_coefficients(form):
    text, expected = form
    parsed = parse_expression(text)
    assert list(parsed) == list(expected)
    assert list(parsed.values()) == pytest.approx([float(c) for c in expected.values()], rel=1e-9, abs=1e-9)


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(st.text("ab-c_'2.5e+*/() $\"\\\n", max_size=12) | st.text(max_size=12))
@example("a +\x85b")
def test_any_text_parses_or_raises_a_value_error_with_a_column(text):
    try:
        parsed = parse_expression(text)
    except ValueError as error:
        assert re.match(r"column \d+ of the expression: found .+; allowed here: .+", str(error), re.DOTALL)
    else:
        assert parsed and all(map(math.isfinite, parsed.values()))


def test_evaluates_the_exact_sum_and_loads_each_name_once():
    loaded = []

    def load(name):
        loaded.append(name)
        return VECTORS[name]

    total = evaluate_expression("0.5*(style - lcm) + 2*style + zero - detail /4", load)
    assert loaded == ["style", "lcm", "zero", "detail"]
    expected = 2.5 * VECTORS["style"].delta(Q) - 0.5 * VECTORS["lcm"].delta(Q) - 0.25 * VECTORS["detail"].delta(Q)
    torch.testing.assert_close(total.delta(Q), expected)
    assert torch.equal(evaluate_expression("style - style", load).delta(Q), torch.zeros(4, 4))
    assert not evaluate_expression("3*nothing", lambda name: LoRAVector())


def test_unknown_names():
    with pytest.raises(ValueError, match=r"no LoRA vector is named 'style-lcm' .*'a - b'.* space before the sign"):
        evaluate_expression("style-lcm", VECTORS.__getitem__)
    with pytest.raises(ValueError, match=r"no LoRA vector is named 'styl' .*; correct the name"):
        evaluate_expression("styl + lcm", VECTORS.__getitem__)

    def missing(name):
        raise FileNotFoundError(f"{name}.safetensors is not there")

    with pytest.raises(ValueError, match="x.safetensors is not there"):
        evaluate_expression("x", missing)


@pytest.mark.parametrize("text, path", [
    ("0.8*/my/style.safetensors + lcm", "/my/style.safetensors"), ("lcm + ../a.safetensors", "../a.safetensors"),
    ("./a", "./a"), ("0.5 * ~/loras/a", "~/loras/a"), ("C:\\loras\\a.safetensors", "C:\\loras\\a.safetensors"),
    ("\\\\host\\a", "\\\\host\\a"), ("2024-style.safetensors", "2024-style.safetensors"),
    ("'x' + 0.5*2024/style.safetensors", "2024/style.safetensors"), ("style#1.safetensors", "style#1.safetensors"),
    ("0.8*Bär.safetensors + ä.safetensors", "ä.safetensors"), ("'/in/quotes' + /not/in", "/not/in"),
])  # fmt: skip
def test_an_unquoted_path_is_told_to_stand_in_quotes(text, path):
    message = f"Put a path such as '{path}' in quotes of its own"
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_expression(text)
    assert path in parse_expression(f"0.5*'{path}' + lcm")


@pytest.mark.parametrize("text", ["a b", "0.8*style-0.3*detail", "'/x' + ", "a ; import os", "2style", "a /0"])
def test_other_mistakes_say_nothing_of_paths(text):
    with pytest.raises(ValueError, match="^column") as caught:
        parse_expression(text)
    assert "Put a path" not in str(caught.value)
