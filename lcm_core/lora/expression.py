"""Linear expressions over named vectors: `0.8*style + 1.0*lcm - 0.3*detail`.

    sum     = product {("+" | "-") product}
    product = signed {("*" | "/") signed}
    signed  = {"+" | "-"} (number | name | "(" sum ")")

A name begins with a letter or `_` and takes in every letter, digit, `_ . / \\ -` that follows, so that
`lcm-lora-sdv1-5.safetensors` is one name: a minus or a division after a name needs a space before it. Any other name
stands in single or double quotes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from operator import mul, truediv

from ..text import quoted, shortened
from .combine import combine
from .vector import LoRAVector

MAX_LENGTH = 10_000
MAX_DEPTH = 100

_NAME = r"[A-Za-z_][\w./\\-]*"
_PATH = re.compile(r"~|/[^\W\d]|\.{1,2}[/\\]|\\|[A-Za-z]:[/\\]|.*\.safetensors$")
_TOKEN = re.compile(
    rf"""(?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)
    |(?P<name>{_NAME})
    |(?P<quoted>"[^"]*"|'[^']*')
    |(?P<operator>[-+*/()])""",
    re.VERBOSE,
)
_OPERAND = "a number, a name, a name in quotes or '('"
_SPACE = (
    "; a name takes in every - and / up to the next space, so write 'a - b' or 'a / 2' with a space before the sign"
)

# A number, or the coefficient of each vector.
Value = float | dict[str, float]


def parse_expression(text: str) -> dict[str, float]:
    """The coefficient of each name, in the order of their first appearance.

    Raises ValueError, with the column (1 is the first character), what is there and what is allowed, for text that is
    not a linear form over at least one name, coefficients that are not finite, more than 10,000 characters and more
    than 100 parentheses in one another.
    """
    if len(text) > MAX_LENGTH:
        raise ValueError(
            f"column {MAX_LENGTH + 1} of the expression: found character {MAX_LENGTH + 1} of {len(text)}; "
            "allowed here: the end. Save the sum of a part of it as a vector and use its name"
        )
    try:
        value = _Parser(text).parse()
    except ValueError as error:
        if path := _unquoted_path(text):
            raise ValueError(f"{error}. Put a path such as '{shortened(path)}' in quotes of its own") from error
        raise
    if not isinstance(value, dict):
        raise _error(
            1, f"an expression that is only the number {value:g}", "the names of vectors too, such as 0.8*style"
        )
    return value


def _unquoted_path(text: str) -> str | None:
    """The first piece outside of quotes that is meant as a path and no name of the grammar."""
    for piece in re.findall(r"[^\s*+()\"']+", re.sub(r"\"[^\"]*\"|'[^']*'", " ", text)):
        if _PATH.match(piece) and not re.fullmatch(_NAME, piece):
            return piece
    return None


def evaluate_expression(text: str, load: Callable[[str], LoRAVector]) -> LoRAVector:
    """The exact sum that `text` states; `load(name)` gives each vector and is called once a name.

    Raises ValueError as `parse_expression` and `combine` do, and for a name for which `load` raises LookupError or
    FileNotFoundError.
    """
    coefficients = parse_expression(text)
    vectors = []
    for name in coefficients:
        try:
            vectors.append(load(name))
        except (LookupError, FileNotFoundError) as error:
            hint = _SPACE if "-" in name or "/" in name else "; correct the name"
            raise ValueError(f"no LoRA vector is named {quoted(name)} ({error}){hint}") from error
    return combine(vectors, list(coefficients.values()))


@dataclass(frozen=True)
class _Token:
    kind: str  # a group of _TOKEN, or "end"
    text: str
    column: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else f"{self.kind} {self.text}"


def _error(column: int, found: str, allowed: str) -> ValueError:
    return ValueError(f"column {column} of the expression: found {shortened(found)}; allowed here: {allowed}")


def _tokens(text: str) -> list[_Token]:
    tokens = []
    end = 0
    while rest := text[end:].lstrip():
        start = len(text) - len(rest)
        match = _TOKEN.match(text, start)
        if match is None:
            if text[start] in "\"'":
                raise _error(start + 1, f"{text[start]} that is not closed", f"a name with {text[start]} at both ends")
            raise _error(start + 1, repr(text[start]), f"{_OPERAND}, or one of + - * / )")
        kind, end = str(match.lastgroup), match.end()
        tokens.append(_Token(kind, match[0], start + 1))
    return [*tokens, _Token("end", "", len(text.rstrip()) + 1)]


class _Parser:
    def __init__(self, text: str) -> None:
        self.tokens = _tokens(text)
        self.position = 0
        self.depth = 0

    @property
    def token(self) -> _Token:
        return self.tokens[self.position]

    def take(self, operators: str) -> _Token | None:
        """The next token, passed over, if it is one of these operators."""
        token = self.token
        if token.kind != "operator" or token.text not in operators:
            return None
        self.position += 1
        return token

    def parse(self) -> Value:
        value = self.sum()
        if self.token.kind != "end":
            raise self.unexpected("+ - * / or the end")
        return value

    def unexpected(self, allowed: str) -> ValueError:
        before = self.tokens[self.position - 1] if self.position else self.token
        hint = ""
        if before.kind == "number" and self.token.kind in ("name", "quoted"):
            hint = f" (write {before.text}*{self.token.text}; a name that begins with a digit stands in quotes)"
        elif before.kind == "name" and before.text[-1] in "-/" and self.token.kind in ("number", "name", "quoted"):
            hint = _SPACE
        return _error(self.token.column, str(self.token), allowed + hint)

    def sum(self) -> Value:
        total = self.product()
        while operator := self.take("+-"):
            term = self.product()
            sign = 1.0 if operator.text == "+" else -1.0
            if isinstance(total, dict) and isinstance(term, dict):
                for name, coefficient in term.items():
                    total[name] = total.get(name, 0.0) + sign * coefficient
            elif isinstance(total, dict) or isinstance(term, dict):
                raise _error(
                    operator.column,
                    f"{operator.text} between a number and a vector",
                    f"{operator.text} between two vectors, such as 0.8*style {operator.text} 1.0*lcm",
                )
            else:
                total += sign * term
            self.check(total, operator)
        return total

    def product(self) -> Value:
        start = self.position
        value = self.signed()
        while operator := self.take("*/"):
            factor = self.signed()
            if operator.text == "*" and isinstance(value, float):
                value, factor = factor, value
            if isinstance(factor, dict):
                names = (token.text for token in self.tokens[start : self.position] if token.kind == "name")
                what = "the product of two vectors" if operator.text == "*" else "division by a vector"
                hint = _SPACE if any("-" in name or "/" in name for name in names) else ""
                raise _error(operator.column, what, f"a vector times or divided by a number{hint}")
            if operator.text == "/" and factor == 0:
                raise _error(operator.column, "division by 0", "a divisor other than 0")
            value = _apply(truediv if operator.text == "/" else mul, value, factor)
            self.check(value, operator)
        return value

    def signed(self) -> Value:
        sign = 1.0
        while operator := self.take("+-"):
            sign = sign if operator.text == "+" else -sign
        return _apply(mul, self.operand(), sign)

    def operand(self) -> Value:
        token = self.token
        if self.take("("):
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise _error(token.column, f"'(' inside {MAX_DEPTH} others", f"at most {MAX_DEPTH} in one another")
            value = self.sum()
            if not self.take(")"):
                raise self.unexpected(f"+ - * / or ) for the ( of column {token.column}")
            self.depth -= 1
            return value
        if token.kind not in ("number", "name", "quoted"):
            raise self.unexpected(_OPERAND)
        self.position += 1
        if token.kind == "number":
            number = float(token.text)
            self.check(number, token)
            return number
        name = token.text if token.kind == "name" else token.text[1:-1]
        if not name.strip():
            raise _error(token.column, "an empty name", "the name of a vector in the quotes")
        return {name: 1.0}

    def check(self, value: Value, token: _Token) -> None:
        if not all(map(math.isfinite, value.values() if isinstance(value, dict) else [value])):
            raise _error(token.column, f"a number that overflows ({token})", "numbers up to 1.8e308")


def _apply(operation: Callable[[float, float], float], value: Value, number: float) -> Value:
    if isinstance(value, dict):
        return {name: operation(coefficient, number) for name, coefficient in value.items()}
    return operation(value, number)
