"""A program as a C99 file and its header, for machines down to microcontrollers.

The file has no heap and no state, and needs nothing but those functions of libm that the program is made of; there is
an own tanh (`c_formulas`). Weights are constants (`c_matrices`), values lie on the stack (`c_layout`), and statements
compute one from another (`c_body`).

Every sum has one order, that of ascending entries, and begins with 0; so all machines with IEEE arithmetic in float
compute the same bits, if their compiler rounds `a * b + c` twice and libm is the same or not needed.

Where an entry of the observation or of the action is NaN or infinite, `NAME_act` sets the action to 0 and returns 1,
and else 0. Values in between may overflow, as IEEE arithmetic has it; no behaviour is undefined.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np

from rlx2_jax.errors import ConfigError
from rlx2_jax.export import c_formulas, c_layout, c_matrices, program
from rlx2_jax.export.c_body import Body, definition, literal
from rlx2_jax.export.c_formulas import FORMULAS
from rlx2_jax.export.description import Description
from rlx2_jax.export.program import Array, Program

SELF_TEST_TOLERANCE = 1e-4
"""Of the self-test: absolute below 1, relative above."""

SELF_TEST_OBSERVATIONS = 4
"""Observations of the self-test, where none are given."""

_HEAD = """\
/* See @.h. Bits are the same on all machines where a * b + c is rounded twice: gcc needs -std=c99 or
   -ffp-contract=off, clang is told here. */

#include <float.h>
#include <stdint.h>

#include "@.h"

#ifdef __FAST_MATH__
#error "compile without -ffast-math: numbers that are not finite are looked for"
#endif
#ifdef __clang__
#pragma STDC FP_CONTRACT OFF
#endif

static int all_finite(const float *x, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) {
        if (!(x[i] >= -FLT_MAX && x[i] <= FLT_MAX)) {
            return 0;
        }
    }
    return 1;
}
"""

_FUNCTIONS = """\
int @_act(const float observation[@@_OBSERVATION_SIZE], float action[@@_ACTION_SIZE])
{
    if (all_finite(observation, @@_OBSERVATION_SIZE)) {
BODY
        if (all_finite(action, @@_ACTION_SIZE)) {
            return 0;
        }
    }
    for (uint32_t i = 0; i < @@_ACTION_SIZE; i++) {
        action[i] = 0.0f;
    }
    return 1;
}

int @_act_scaled(const float observation[@@_OBSERVATION_SIZE], float action[@@_ACTION_SIZE])
{
    const int status = @_act(observation, action);
    for (uint32_t i = 0; i < @@_ACTION_SIZE; i++) {
        const float low = @_action_low[i], high = @_action_high[i];
        const float scaled = (0.5f * low + 0.5f * high) + (0.5f * high - 0.5f * low) * action[i];
        action[i] = scaled < low ? low : scaled > high ? high : scaled;
    }
    return status;
}
"""

_SELF_TEST = """\
#ifdef @@_SELF_TEST
OBSERVATIONS
ACTIONS
int @_self_test(void)
{
    int mismatches = 0;
    for (uint32_t k = 0; k < COUNT; k++) {
        float action[@@_ACTION_SIZE];
        (void)@_act(test_observations + k * @@_OBSERVATION_SIZE, action);
        for (uint32_t i = 0; i < @@_ACTION_SIZE; i++) {
            const float expected = test_actions[k * @@_ACTION_SIZE + i];
            const float size = expected < 0.0f ? -expected : expected;
            const float allowed = TOLERANCE * (size > 1.0f ? size : 1.0f);
            const float difference = action[i] - expected;
            if (!(difference <= allowed && difference >= -allowed)) {
                mismatches++;
            }
        }
    }
    return mismatches;
}
#endif
"""

_HEADER = """\
/* ABOUT */

#ifndef @@_H
#define @@_H

#ifdef __cplusplus
extern "C" {
#endif

#define @@_OBSERVATION_SIZE INPUTS
#define @@_ACTION_SIZE OUTPUTS

/* Entries of an observation. */
enum @_observation {
OBSERVATION_NAMES
};

/* Entries of an action. */
enum @_action {
ACTION_NAMES
};

/* What -1 and 1 of an action mean, in the units of the actuators. */
extern const float @_action_low[@@_ACTION_SIZE];
extern const float @_action_high[@@_ACTION_SIZE];

/* The action for an observation, in [-1, 1]. The arrays must not overlap. Returns 0; or, if an entry of the
   observation is NaN or infinite, or an entry of the action would be, sets the action to 0 and returns 1. May be called
   from several threads at a time. */
int @_act(const float observation[@@_OBSERVATION_SIZE], float action[@@_ACTION_SIZE]);

/* The same in the units of the actuators: low + (action + 1) / 2 * (high - low), never beyond the bounds. Where
   @_act sets 0 and returns 1, this sets the middle of the bounds and returns 1. */
int @_act_scaled(const float observation[@@_OBSERVATION_SIZE], float action[@@_ACTION_SIZE]);

#ifdef @@_SELF_TEST
/* How many entries of the actions for the COUNT observations compiled in are not what they should be: 0, if all is
   well. Define @@_SELF_TEST when compiling both @.c and what calls this. */
int @_self_test(void);
#endif

#ifdef __cplusplus
}
#endif

#endif
"""


@dataclasses.dataclass(frozen=True)
class CSource:
    """A policy in C."""

    name: str
    """Prefix of what it defines; its files are to be `NAME.c` and `NAME.h`."""
    source: str
    """Text of `NAME.c`."""
    header: str
    """Text of `NAME.h`."""


def write(
    policy: Program,
    description: Description,
    *,
    int8: bool = False,
    tanh: str = "libm",
    name: str = "policy",
    self_test: Array | None = None,
) -> CSource:
    """A program in C; the same text for the same arguments.

    Args:
      policy: the program.
      description: what the header tells of it.
      int8: weights of 8 bits with a scale per output, instead of float32.
      tanh: `libm` for `tanhf`, or `approximate` for an own function within `c_formulas.TANH_ERROR` of it.
      name: prefix of everything that the header defines; in capitals, of its macros.
      self_test: observations `[K, O]` whose actions `NAME_self_test` expects; a few normal ones if left out.

    Raises:
      ConfigError: an impossible name or `tanh`, a description of another policy, a number that is not finite in the
        policy or the observations.
    """
    _check(policy, description, tanh, name)
    if self_test is None:
        self_test = np.random.default_rng(0).normal(size=(SELF_TEST_OBSERVATIONS, policy[0].size))
    if not np.isfinite(self_test).all():
        raise ConfigError("self_test: a number in the observations is not finite, which C has no constant for.")
    formulas = {**FORMULAS, "tanh": c_formulas.TANH[tanh]}
    matrices = {k: c_matrices.store(o.weight, int8=int8) for k, o in enumerate(policy) if o.weight is not None}
    body = Body(policy, c_layout.lay_out(policy), matrices, formulas)
    bounds = {"@_action_low": description.action_low, "@_action_high": description.action_high}
    parts = (
        _HEAD,
        *body.definitions(),
        "\n".join(definition(name, np.array(values, np.float32), static="") for name, values in bounds.items()),
        _FUNCTIONS.replace("BODY", textwrap.indent(body.text(), " " * 8)),
        _self_test(c_matrices.quantised(policy) if int8 else policy, np.asarray(self_test, np.float32)),
    )
    source = "\n\n".join(part.strip() for part in parts if part) + "\n"
    header = _header(description, len(self_test))
    return CSource(name, _named(source, name), _named(header, name))


def int8_error(policy: Program, observations: Array) -> float:
    """Largest difference that int8 weights make to an entry of the actions for observations `[K, O]`."""
    rounded = c_matrices.quantised(policy)
    return max(float(np.abs(program.run(policy, o) - program.run(rounded, o)).max()) for o in observations)


def _self_test(computed: Program, observations: Array) -> str:
    """The self-test for observations `[K, O]`."""
    with np.errstate(all="ignore"):
        actions = np.stack([program.run(computed, observation) for observation in observations])
    actions[~np.isfinite(actions).all(1)] = 0
    texts = {
        "OBSERVATIONS": definition("test_observations", observations.reshape(-1)),
        "ACTIONS": definition("test_actions", actions.reshape(-1)),
        "COUNT": str(len(observations)),
        "TOLERANCE": literal(np.float32(SELF_TEST_TOLERANCE)),
    }
    return _filled(_SELF_TEST, texts)


def _header(description: Description, tests: int) -> str:
    """Text of the header, for so many observations in the self-test."""
    facts = (f"{_plain(key)}: {_plain(value)}" for key, value in description.provenance.items())
    low, high = description.action_low, description.action_high
    bounds = [f"{np.float32(a)!s} to {np.float32(b)!s}" for a, b in zip(low, high, strict=True)]
    texts = {
        "ABOUT": "\n   ".join((f"{_plain(description.name)}: a policy in C99.", *facts)),
        "INPUTS": str(len(description.observation_names)),
        "OUTPUTS": str(len(description.action_names)),
        "OBSERVATION_NAMES": _enumerators("@@_OBSERVATION_", description.observation_names),
        "ACTION_NAMES": _enumerators("@@_ACTION_", description.action_names, bounds),
        "COUNT": str(tests),
    }
    return _filled(_HEADER, texts)


def _filled(template: str, texts: Mapping[str, str]) -> str:
    """A template with its words in capitals replaced, none of them within what another was replaced by."""
    return re.sub(rf"(?<![\w@])({'|'.join(texts)})(?!\w)", lambda match: texts[match[0]], template)


def _named(text: str, name: str) -> str:
    """A text with the policy's name in it, in small letters as it is and in capitals."""
    return text.replace("@@", name.upper()).replace("@", name)


def _enumerators(prefix: str, names: Sequence[str], notes: Sequence[str] = ()) -> str:
    """Lines of an enumeration: names as identifiers, each once, and as they are in comments."""
    taken, lines = {"SIZE"}, []
    for number, name in enumerate(names):
        word = re.sub(r"[^A-Z0-9]+", "_", name.upper()).strip("_") or str(number)
        word = next(
            w for w in itertools.chain([word], map(f"{word}_{{}}".format, itertools.count(2))) if w not in taken
        )
        taken.add(word)
        note = f", {notes[number]}" if notes else ""
        lines.append(f"    {prefix}{word} = {number}, /* {_plain(name)}{note} */")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """A text that cannot end the comment it stands in, nor begin another one, a line or a trigraph."""
    return re.sub(r"[^A-Za-z0-9 .,:;=+()%<>|/_-]", "_", text)


def _check(policy: Program, description: Description, tanh: str, name: str) -> None:
    """Refuse what cannot be written."""
    if not re.fullmatch(r"[A-Za-z]\w{0,30}", name, re.ASCII):
        raise ConfigError(f"name={name!r} is no identifier of C; use letters, digits and _, a letter first.")
    if tanh not in c_formulas.TANH:
        raise ConfigError(f"unknown tanh {tanh!r}; valid: {', '.join(c_formulas.TANH)}.")
    of_actions = (description.action_names, description.action_low, description.action_high)
    inputs, outputs = policy[0].size, policy[-1].size
    if len(description.observation_names) != inputs or any(len(values) != outputs for values in of_actions):
        raise ConfigError(
            f"the description is not of {inputs} observations and {outputs} actions, as the policy is; give each entry "
            "one name, and each action its bounds."
        )
    with np.errstate(over="ignore"):
        bounds = np.array(of_actions[1:]).astype(np.float32)
    if not (np.isfinite(bounds).all() and (bounds[0] <= bounds[1]).all()):
        raise ConfigError("bounds of the actions are not finite, or crossed; give finite ones, the lower first.")
    arrays = (a for o in policy for a in (o.data, o.weight, o.bias) if a is not None)
    if not all(np.isfinite(a).all() for a in arrays):
        raise ConfigError("a number in the policy is not finite, which C has no constant for; export another one.")
