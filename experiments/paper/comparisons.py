"""What a report says beside its sections: others' returns, other references than dense, rows by rows, runs' origins."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from paper import store, tables
from paper.sections import Group
from paper.store import Line
from paper.study import DENSE, SPARSITY_SETTINGS, Study
from rlx2_jax.analysis import statistics
from rlx2_jax.analysis.statistics import Estimate
from rlx2_jax.envs import brax
from rlx2_jax.io import provenance


def published(group: Group, study: Study) -> list[str]:
    """The dense agent's return beside those that others have published, if there are any of its row."""
    others = study.published.get(group.row, ())
    dense = group.arms(study).get(DENSE)
    if not others or dense is None or group.kind != store.LEARNING:
        return []
    c = dense[0]["config"]
    ours = statistics.summarize(store.scores(dense, DENSE))
    seeds = f"{len(dense)} seed{'s' * (len(dense) > 1)}"
    how = (
        f"{seeds}, {c['total_steps']:,} steps, {c['env']}, mean of the last {c['score_evaluations']} evaluations, "
        f"{c['eval_episodes']} episodes each"
    )
    spread = f"{ours.std:.0f}" if ours.n > 1 else "-"
    rows = [["dense agent", "return", "standard deviation over seeds", "protocol"]]
    rows.append(["**ours**", f"{ours.mean:.0f}", spread, how])
    for other in others:
        deviation = "-" if other.spread is None else f"{other.spread:.0f}"
        rows.append([other.whose, f"{other.value:.0f}", deviation, other.protocol])
    return ["The dense agent beside published ones:", tables.markdown(rows)]


def dead_inputs(group: Group, study: Study) -> list[str]:
    """Where the links of first layers are, if the task has observations that are always zero."""
    arms = {name: [line for line in lines if store.DEAD_INPUTS in line] for name, lines in group.arms(study).items()}
    if not any(arms.values()):
        return []
    rows = [["arm", "n", "actor, at the beginning", "at the end", "critics, at the beginning", "at the end"]]
    for name, lines in arms.items():
        if lines:
            cells = [_at_dead_inputs(lines, network, when) for network in ("actor", "critic") for when in (0, 1)]
            rows.append([name, str(len(lines)), *cells])
    return [
        "Links of the first layer at observations that are always zero, of all links there (means over seeds; both "
        "critics together):",
        tables.markdown(rows),
    ]


def _at_dead_inputs(lines: Sequence[Line], network: str, when: int) -> str:
    dead, links = np.mean([line[store.DEAD_INPUTS][network][when] for line in lines], axis=0)
    return f"{dead:,.0f} of {links:,.0f} ({100 * dead / links:.1f} %)"


def across(found: Sequence[Group], study: Study) -> list[str]:
    """Tables over several sections that were made in one way."""
    learning = [group for group in found if group.kind == store.LEARNING]
    parts: list[str] = []
    for members in _alike(learning):
        parts += _beside_references(members, study)
        parts += _contrast(members, study)
    return parts


def _alike(found: Iterable[Group]) -> list[list[Group]]:
    """Groups of an agent that differ in their task, and in how sparse it makes them; each row once in a list.

    Where a row has several, its first stands beside the first of others, its second beside their second.
    """
    alike: dict[tuple[str, int], list[Group]] = {}
    times: collections.Counter[tuple[str, str]] = collections.Counter()
    for group in found:
        same = {name: value for name, value in group.conditions.items() if name not in SPARSITY_SETTINGS}
        key = json.dumps([group.row.partition("/")[0], same], sort_keys=True)
        alike.setdefault((key, times[key, group.row]), []).append(group)
        times[key, group.row] += 1
    return list(alike.values())


def _task(group: Group) -> str:
    return group.row.partition("/")[2]


def _steps(group: Group) -> int:
    return int(group.config["total_steps"])


def _beside_references(members: Sequence[Group], study: Study) -> list[str]:
    """Arms measured by others than the dense one: in each task, and on average over those that have both."""
    names = [arm.name for arm in study.arms(_steps(members[0]))]
    references = [name for name in study.references if any(name in group.arms(study) for group in members)]
    if not references:
        return []
    screened = study.screening is not None and study.screening.steps == _steps(members[0])
    head = [f"% of {reference}, {_task(group)}" for reference in references for group in members]
    means = [f"% of {reference}, mean of tasks" for reference in references]
    rows = [["arm", *head, *means, *(["screening"] if screened else [])]]
    for name in names:
        by_task = {reference: [_share(group, study, name, reference) for group in members] for reference in references}
        if not any(each for shares in by_task.values() for each in shares):
            continue
        mean = {reference: _mean_share(members, study, name, reference) for reference in references}
        cells = [tables.shown(each, 100, 1) for shares in by_task.values() for each in shares]
        cells += [tables.shown(each, 100, 1) for each in mean.values()]
        rows.append([name, *cells, *([_verdict(name, mean.get(study.references[0]), study)] if screened else [])])
    title = f"{members[0].row.partition('/')[0].upper()}, {_steps(members[0]):,} steps"
    return [f"## {title}: beside {' and '.join(references)}", tables.markdown(rows)]


def _has(group: Group, study: Study, *arms: str) -> bool:
    return set(arms) <= set(group.arms(study))


def _share(group: Group, study: Study, arm: str, reference: str) -> Estimate | None:
    """Score of an arm relative to another's on one task."""
    if arm == reference or not _has(group, study, arm, reference):
        return None
    return tables.relative(statistics.ratio, group.sample(arm), group.sample(reference))


def _mean_share(members: Sequence[Group], study: Study, arm: str, reference: str) -> Estimate | None:
    """The same on average over tasks; None unless there are several, and each has both."""
    if arm == reference or len(members) == 1 or not all(_has(group, study, arm, reference) for group in members):
        return None
    sample, other = ([group.sample(name)[0] for group in members] for name in (arm, reference))
    return tables.relative(statistics.ratio, sample, other)


def _verdict(name: str, mean: Estimate | None, study: Study) -> str:
    """What the screening says of an arm: nothing of one that it is not about."""
    assert study.screening is not None
    if mean is None or name not in study.screening.arms:
        return "-"
    return "goes on" if mean.value > study.screening.least else "does not"


def _difference(sample: statistics.Sample, reference: statistics.Sample) -> np.ndarray:
    """Share of the reference on the first task, less that on the second."""
    first, second = (a.mean(-1) / b.mean(-1) for a, b in zip(sample, reference, strict=True))
    return np.asarray(first - second)


def _contrast(members: Sequence[Group], study: Study) -> list[str]:
    """How arms' shares of dense differ between two rows, beside what was predicted."""
    by_row: Mapping[str, Group] = {group.row: group for group in members}
    if study.contrast is None or not set(study.contrast.rows) <= set(by_row):
        return []
    first, second = (by_row[row] for row in study.contrast.rows)
    head = ["arm", *(f"% of dense, {_task(group)}" for group in (first, second))]
    rows = [[*head, "difference, points", "predicted", "does it hold"]]
    for arm in study.arms(_steps(first)):
        if arm.name == DENSE or not all(_has(group, study, arm.name, DENSE) for group in (first, second)):
            continue
        sample, dense = ([group.sample(name)[0] for group in (first, second)] for name in (arm.name, DENSE))
        difference = tables.relative(_difference, sample, dense)
        sign = study.contrast.predicted.get(arm.name)
        shares = [tables.shown(_share(group, study, arm.name, DENSE), 100, 1) for group in (first, second)]
        predicted = "-" if sign is None else "rises" if sign > 0 else "falls"
        rows.append(
            [arm.name, *shares, tables.shown(difference, 100, 1, signed=True), predicted, _holds(difference, sign)]
        )
    title = f"{first.title} against {_task(second)}, {_steps(first):,} steps"
    return [f"## {title}", tables.markdown(rows)] if len(rows) > 1 else []


def _holds(difference: Estimate | None, sign: int | None) -> str:
    """Whether an interval says that a prediction holds."""
    if difference is None or sign is None or difference.fewest == 1:
        return "-"
    low, high = sorted((sign * difference.low, sign * difference.high))
    return "yes" if low > 0 else "no, the contrary" if high < 0 else "undecided: the interval holds 0"


CHOOSING = ("rows", "arms", "seeds", "workers")
"""Flags of a study that say which of its runs are made in one go, and how many at once: no run differs by them."""


def origins(lines: Sequence[Line]) -> list[str]:
    """The commands, commits and machines that runs were made with, those together that differ in `CHOOSING` alone."""
    alike: dict[tuple[Any, ...], list[Line]] = {}
    for line in lines:
        p = line["provenance"]
        packages = ("python", "jax", "brax" if line["env"] in brax.TASKS else "mujoco")
        stack = ", ".join(f"{name} {(p['versions'] or {}).get(name, '?')}" for name in packages)
        key = frozenset(_command(line).split()), str(p["device"]), str(p["compute"]), stack
        alike.setdefault(key, []).append(line)
    rows = [["runs", "of", "command", "commits", "device", "compute", "versions"]]
    for (_, *machine), members in alike.items():
        of = dict.fromkeys(line["row"] for line in members)
        commits = dict.fromkeys(str(line["provenance"]["commit"]) for line in members)
        rows.append([str(len(members)), ", ".join(of), f"`{_command(members[0])}`", ", ".join(commits), *machine])
    flags = ", ".join(f"`--{name}`" for name in CHOOSING)
    return [
        f"Commands are without {flags}, which only choose runs; [runs.jsonl](runs.jsonl) has each run's own.",
        tables.markdown(rows),
    ]


def _command(line: Line) -> str:
    """The command that made a run, but for the choice of runs."""
    return " ".join(provenance.without(CHOOSING, str(line["provenance"]["command"]).split()))
