"""Entrywise operations of a program as expressions of C.

Functions of libm are declared one by one where they are used, so that no header of a C library is needed. For tanh
there is a substitute: x p(x^2) / q(x^2), with p and q fitted for the smallest maximal error between -8 and 8, beyond
which it is -1 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TANH_ERROR = 5e-7
"""Bound of the substitute's absolute error, rounding included."""


class Formula(NamedTuple):
    """An entrywise operation in C."""

    text: str
    """Expression of its arguments `{0}`, `{1}`, `{2}`."""
    libm: tuple[str, ...] = ()
    """Declarations, without their type, of what it calls."""
    helper: str = ""
    """Function that it calls, which reads an argument twice."""


def _libm(name: str, arguments: int = 1) -> tuple[str, ...]:
    return (f"{name}({', '.join(['float'] * arguments)})",)


def _helper(name: str, body: str) -> Formula:
    return Formula(f"{name}({{0}})", (), f"static float {name}(float x)\n{{\n    return {body};\n}}\n")


def _extreme(name: str, sign: str) -> Formula:
    body = f"x {sign} y || x != x ? x : y"
    return Formula(f"{name}({{0}}, {{1}})", (), f"static float {name}(float x, float y)\n{{\n    return {body};\n}}\n")


FORMULAS: Mapping[str, Formula] = {
    # So compilers make no branch of it, which no processor could foresee; NaN stays NaN.
    "relu": _helper("rectified", "(x > 0.0f ? x : 0.0f) + (x == x ? 0.0f : x)"),
    "tanh": Formula("tanhf({0})", _libm("tanhf")),
    "exp": Formula("expf({0})", _libm("expf")),
    "expm1": Formula("expm1f({0})", _libm("expm1f")),
    "log": Formula("logf({0})", _libm("logf")),
    "log1p": Formula("log1pf({0})", _libm("log1pf")),
    "logistic": Formula("(1.0f / (1.0f + expf(-{0})))", _libm("expf")),
    "sqrt": Formula("sqrtf({0})", _libm("sqrtf")),
    "rsqrt": Formula("(1.0f / sqrtf({0}))", _libm("sqrtf")),
    "square": _helper("squared", "x * x"),
    "negative": Formula("(-{0})"),
    "abs": _helper("magnitude", "x > 0.0f ? x : 0.0f - x"),
    "sign": _helper("sign", "x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x"),
    "sin": Formula("sinf({0})", _libm("sinf")),
    "cos": Formula("cosf({0})", _libm("cosf")),
    "add": Formula("({0} + {1})"),
    "subtract": Formula("({0} - {1})"),
    "multiply": Formula("({0} * {1})"),
    "divide": Formula("({0} / {1})"),
    "maximum": _extreme("larger", ">="),
    "minimum": _extreme("smaller", "<="),
    "power": Formula("powf({0}, {1})", _libm("powf", 2)),
    "greater": Formula("({0} > {1} ? 1.0f : 0.0f)"),
    "greater_equal": Formula("({0} >= {1} ? 1.0f : 0.0f)"),
    "equal": Formula("({0} == {1} ? 1.0f : 0.0f)"),
    "select": Formula("({0} != 0.0f ? {1} : {2})"),
}
"""All entrywise operations; NaN is treated as in `program`."""

REDUCTIONS: Mapping[str, Formula] = {
    "sum": Formula("({0} + {1})"),
    "largest": FORMULAS["maximum"],
    "smallest": FORMULAS["minimum"],
}
"""What is made of the result so far and the next entry."""

APPROXIMATE_TANH = Formula(
    "tanh_approximate({0})",
    (),
    """\
static float tanh_approximate(float x)
{
    const float z = x * x;
    const float p = 0.9999994f + z * (0.12912959f + z * (0.0029380077f + z * 1.1300042e-05f));
    const float q = 1.0f + z * (0.4624607f + z * (0.023760688f + z * (0.00023690386f + z * 2.420405e-07f)));
    const float y = x * p / q;
    return x > 8.0f || y > 1.0f ? 1.0f : x < -8.0f || y < -1.0f ? -1.0f : y;
}
""",
)
"""The substitute for tanhf; NaN stays NaN."""

TANH = {"libm": FORMULAS["tanh"], "approximate": APPROXIMATE_TANH}
"""What a writer may take for tanh."""
