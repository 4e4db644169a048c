"""Where a program's values lie when C computes it: which are computed at all, in which turn, in which memory.

A value that one other reads entry by entry is expanded: its formula stands in the loop of its reader, and it has no
memory. The others are steps. Each step has a place in one array, `scratch`, from its own turn to that of its last
reader; a step whose entries replace those of a value that nothing reads later takes that value's place. The last step
writes to the action.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Set

from rlx2_jax.export.program import BINARY, REDUCTIONS, UNARY, Program, reached

ENTRYWISE = frozenset({*UNARY, *BINARY, "select"})
"""Operations whose entry i reads entries i of what has their length, and the only entry of what has length 1."""

EXPANDABLE = ENTRYWISE | {"take"}
"""Operations that can stand as a formula in a loop."""

DEEPEST = 24
"""Formulas within formulas; compilers need not take more than 63 parentheses."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Turns and places of a program's values."""

    steps: tuple[int, ...]
    """Values that have memory of their own, in turn; the last one is the action."""
    expanded: frozenset[int]
    """Values that stand as formulas in the steps that read them."""
    offsets: Mapping[int, int]
    """First entry in `scratch` of each step but the last."""
    scratch: int
    """Entries of `scratch`."""


def lay_out(program: Program) -> Layout:
    """The turns and places of a program's values."""
    last = len(program) - 1
    needed = reached(program)
    uses = collections.Counter(i for k in needed for i in program[k].inputs)
    readers = {i: k for k in needed for i in program[k].inputs}
    depths: dict[int, int] = {}
    for k in sorted(needed - {last}):
        depth = 1 + max((depths.get(i, 0) for i in program[k].inputs), default=0)
        alone = uses[k] == 1 and _reads_in_a_loop(program, readers[k], k)
        if alone and program[k].name in EXPANDABLE and depth <= DEEPEST:
            depths[k] = depth
    expanded = frozenset(depths)
    held = (k for k in sorted(needed - expanded) if program[k].name not in ("input", "constant") or k == last)
    steps = tuple(held)
    offsets, scratch = _places(program, steps, expanded)
    return Layout(steps, expanded, offsets, scratch)


def _reads_in_a_loop(program: Program, reader: int, k: int) -> bool:
    """Whether a reader takes entry i of value k in turn i of a loop over all of k."""
    operation = program[reader]
    if operation.name in ENTRYWISE:
        return program[k].size == operation.size
    return operation.name in REDUCTIONS or operation.name == "concat"


def _reads(program: Program, expanded: Set[int], k: int, entrywise: bool = True) -> Iterator[tuple[int, bool]]:
    """The values in memory that a step reads, and whether entry i of it reads no entry of them but i."""
    entrywise = entrywise and program[k].name in ENTRYWISE
    for i in program[k].inputs:
        if i in expanded:
            yield from _reads(program, expanded, i, entrywise)
        else:
            yield i, entrywise and program[i].size == program[k].size


def _places(program: Program, steps: tuple[int, ...], expanded: Set[int]) -> tuple[dict[int, int], int]:
    """Places in `scratch`, and its length: each step takes the first that is free."""
    reads = {k: list(_reads(program, expanded, k)) for k in steps}
    last_reader = {i: k for k in steps for i, _ in reads[k]}
    offsets: dict[int, int] = {}
    live: set[int] = set()
    for k in steps[:-1]:
        ending = {i for i, _ in reads[k] if i in live and last_reader[i] == k}
        replaceable = [i for i in sorted(ending) if all(entrywise for j, entrywise in reads[k] if j == i)]
        if replaceable:
            offsets[k] = offsets[replaceable[0]]
        else:
            offsets[k] = _first_fit([(offsets[i], program[i].size) for i in live], program[k].size)
        live = (live - ending) | {k}
    return offsets, max((offset + program[k].size for k, offset in offsets.items()), default=0)


def _first_fit(taken: list[tuple[int, int]], size: int) -> int:
    """The first offset at which so many entries are free."""
    offset = 0
    for start, length in sorted(taken):
        if start - offset >= size:
            break
        offset = start + length
    return offset
