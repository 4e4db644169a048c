"""A study's report: `README.md` and pictures, made of `runs.jsonl` alone, so that anyone can make them again.

What people found out is in `findings.md` beside it, and is taken over as it stands. Runs are compared only with runs of
the same length, backend and settings; each such group is a section.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlx2_jax import files, statistics
from rlx2_jax.config import PAPER_STEPS, Config
from rlx2_jax.statistics import Estimate
from rlx2_jax.studies import frontier, records
from rlx2_jax.studies.catalogue import DENSE, Study
from rlx2_jax.studies.records import Line
from rlx2_jax.viz import curves
from rlx2_jax.viz import studies as pictures

FINDINGS = "findings.md"

OF_ARMS = frozenset(
    {
        *("seed", "compute", "method", "topology", "n_step", "n_max", "dynamic_buffer", "buffer_max", "buffer_min"),
        *("actor_sparsity", "critic_sparsity", "initial_mask", "ticket", "ticket_weights"),
    }
)
"""Settings in which the runs of a section may differ: what arms change, and what changes rounding alone."""

SCALED = ("warmup_steps", "evolve_interval", "n_step_delay", "buffer_check_interval")
"""Points in time, named in every section."""


class Group(NamedTuple):
    """Runs that may be compared."""

    row: str
    kind: str
    """`learning` or `cloning`."""
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """What they have in common, in short."""
        agent, _, env = self.row.partition("/")
        how = "" if self.kind == records.LEARNING else ", imitating the dense agent"
        return f"{agent.upper()} on {env}{how}"

    @property
    def config(self) -> dict[str, Any]:
        """Of one of the runs; the others differ in `OF_ARMS`."""
        return self.lines[0]["config"]

    def arms(self, study: Study) -> dict[str, list[Line]]:
        """Runs by arm, in the study's order, for the arms that have any."""
        names = [arm.name for arm in study.arms(self.config["total_steps"])]
        found = {name: [line for line in self.lines if line["arm"] == name] for name in names}
        return {name: lines for name, lines in found.items() if lines}

    def sample(self, arm: str) -> list[np.ndarray]:
        """Scores of one arm, fit for `statistics`."""
        return [records.scores(self.lines, arm)]


def groups(lines: Sequence[Line]) -> list[Group]:
    """Runs by what they may be compared with, in the order of the file."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        rest = {name: value for name, value in line["config"].items() if name not in OF_ARMS}
        found.setdefault((line["row"], line["kind"], json.dumps(rest, sort_keys=True)), []).append(line)
    return [Group(row, kind, tuple(members)) for (row, kind, _), members in found.items()]


def write(directory: Path, name: str, study: Study) -> None:
    """Make README.md and the pictures of a study's directory."""
    source = digest(directory)
    found = groups(records.read(directory))
    for group, stem in zip(found, _stems(found), strict=True):
        _draw(group, study, directory, stem, source)
    files.write_bytes(directory / "README.md", markdown(directory, name, study).encode())


def digest(directory: Path) -> str:
    """Of the raw data, kept in every picture made of them."""
    return hashlib.sha256((directory / records.FILE).read_bytes()).hexdigest()[:16]


def markdown(directory: Path, name: str, study: Study) -> str:
    """The text of README.md."""
    lines = records.read(directory)
    parts = [
        f"# {study.title}",
        study.question,
        f"Made of [runs.jsonl](runs.jsonl) ({len(lines)} runs) by "
        f"`python experiments/reproduce.py --study={name} --report_only`. Intervals are 95 % bootstrap intervals over "
        "seeds; with a handful of seeds they are rough, and too narrow rather than too wide.",
    ]
    found = groups(lines)
    for group, stem in zip(found, _stems(found), strict=True):
        parts += _section(group, study, stem)
    parts += _across(found, study)
    findings = directory / FINDINGS
    if findings.exists():
        parts += ["## What was found", findings.read_text(encoding="utf-8").strip()]
    parts += ["## Where the runs come from", _provenance(lines)]
    return "\n\n".join(parts) + "\n"


def _section(group: Group, study: Study, stem: str) -> list[str]:
    unit = "steps" if group.kind == records.LEARNING else "updates"
    title = f"{group.title}, {group.config['total_steps']:,} {unit}"
    shown = [f"![learning curves and scores]({stem}.png)"]
    if study.figure is not None:
        shown.append(f"![{study.figure}]({stem}-{study.figure}.png)")
    searched = [_search(group)] if study.search else []
    return [f"## {title}", _conditions(group), *shown, *searched, _table(group, study)]


def _search(group: Group) -> str:
    """What the search has found so far."""
    scores: dict[float, dict[int, float]] = {}
    for line in group.lines:
        scores.setdefault(line["actor_sparsity"], {})[line["seed"]] = line["score"]
    found = frontier.search(scores, sorted({line["seed"] for line in group.lines}))
    rows = [["sparsity", "n", "% of dense", "verdict"]]
    for step in found.steps:
        verdict = "kept" if step.kept else "lost"
        rows.append(
            [
                f"{100 * step.sparsity:g} %",
                str(step.ratio.n),
                _shown(step.ratio, 100, 1),
                verdict if step.decided else f"{verdict}, by the ratio alone: its interval holds 97 %",
            ]
        )
    if found.missing is not None:
        sparsity, seeds = found.missing
        end = f"Not at its end: next are {len(seeds)} runs at {100 * sparsity:g} %."
    elif found.largest is None:
        end = f"**No sparsity of the grid, from {100 * frontier.GRID[0]:g} % on, keeps 97 % of the dense return.**"
    else:
        end = f"**Largest sparsity of the grid that keeps 97 % of the dense return: {100 * found.largest:g} %.**"
    return "\n\n".join([_markdown_table(rows), end]) if found.steps else end


def _conditions(group: Group) -> str:
    c = group.config
    if group.kind == records.CLONING:
        return (
            f"Actors that imitate the dense agent of their seed: {c['total_steps']:,} Adam steps on batches of "
            f"{c['batch_size']} of its observations, gathered with exploration noise {c['explore_noise']:g}; links "
            f"move every {c['evolve_interval']:,} updates. Score: mean of the last {c['score_evaluations']} "
            f"evaluations, every {c['eval_every']:,} updates, of {c['eval_episodes']} episodes each."
        )
    defaults = Config().to_dict()
    told = {*OF_ARMS, *SCALED, "agent", "env", "backend", "total_steps", "schedule_scale", "num_envs", "eval_episodes"}
    derived = {field.name for field in dataclasses.fields(Config) if defaults[field.name] is None}
    special = [f"`{k}={v}`" for k, v in c.items() if k in defaults and k not in told | derived and v != defaults[k]]
    times = ", ".join(f"{name} {c[name]:,}" for name in SCALED)
    return (
        f"Brax `{c['backend']}`; {c['total_steps']:,} environment steps where the paper has {PAPER_STEPS:,}, its "
        f"points in time times {c['schedule_scale']:.3g} unless named ({times}); {c['num_envs']} environments, "
        f"{c['update_ratio']:g} update per step"
        + (f"; settings of all arms: {', '.join(special)}" if special else "")
        + f". Score: mean of the last {c['score_evaluations']} evaluations, every {c['eval_every']:,} steps, of "
        f"{c['eval_episodes']} episodes each, from initial states drawn afresh."
    )


def _table(group: Group, study: Study) -> str:
    arms = group.arms(study)
    paper = study.paper.get(group.row, {})
    head = ["arm", "n", "score", "interquartile mean", "% of dense", "paper, %", f"P({study.hero} better)", "size"]
    rows = [[*head, "FLOPs, training", "seeds"]]
    for name, lines in arms.items():
        sample = group.sample(name)
        relative = "-"
        if DENSE in arms and name != DENSE:
            relative = _shown(statistics.estimate(statistics.ratio, sample, group.sample(DENSE)), 100, 1)
        better = "-"
        if study.hero in arms and name != study.hero:
            better = _shown(statistics.estimate(statistics.improvement, group.sample(study.hero), sample), 1, 2)
        rows.append(
            [
                f"**{name}**" if name == study.hero else name,
                f"{len(lines)}" + _failed(lines),
                _shown(statistics.estimate(statistics.mean, sample)),
                _shown(statistics.estimate(statistics.iqm, sample)),
                relative,
                f"{paper[name]:g}" if name in paper else "-",
                better,
                _ratio(lines[0]["size_ratio"]),
                _ratio(lines[0]["flops_train_ratio"]),
                ", ".join(f"{score:.4g}" for score in sample[0]),
            ]
        )
    return _markdown_table(rows)


def _across(found: Sequence[Group], study: Study) -> list[str]:
    """Rows together, for arms that all of them have, if there is more than one with a dense agent."""
    usable = [group for group in found if DENSE in group.arms(study)]
    if len(usable) < 2:
        return []
    common = [name for name in usable[0].arms(study) if all(name in group.arms(study) for group in usable)]
    dense = [group.sample(DENSE)[0] for group in usable]
    rows = [["arm", "runs", "% of dense, mean of rows", "interquartile mean of runs, % of dense"]]
    for name in common:
        samples = [group.sample(name)[0] for group in usable]
        normalised = [100 * scores / reference.mean() for scores, reference in zip(samples, dense, strict=True)]
        relative = statistics.estimate(statistics.ratio, samples, dense) if name != DENSE else None
        rows.append(
            [
                name,
                str(sum(map(len, samples))),
                "100" if relative is None else _shown(relative, 100, 1),
                _shown(statistics.estimate(statistics.iqm, normalised), 1, 1),
            ]
        )
    return [f"## {len(usable)} sections together", _markdown_table(rows)]


def _provenance(lines: Sequence[Line]) -> str:
    counted: dict[tuple[str, ...], int] = {}
    for line in lines:
        p = line["provenance"]
        stack = ", ".join(f"{name} {(p['versions'] or {}).get(name, '?')}" for name in ("python", "jax", "brax"))
        key = f"`{p['command']}`", str(p["commit"]), str(p["device"]), str(p["compute"]), stack
        counted[key] = counted.get(key, 0) + 1
    rows = [["runs", "command", "commit", "device", "compute", "versions"]]
    rows += [[str(count), *key] for key, count in counted.items()]
    return _markdown_table(rows)


def _draw(group: Group, study: Study, directory: Path, stem: str, source: str) -> None:
    arms = group.arms(study)
    title = group.title
    estimates = {name: statistics.estimate(statistics.mean, group.sample(name)) for name in arms}
    if study.figure == "sparsity":
        shown = {name: lines for name, lines in arms.items() if name in (DENSE, study.hero)}
    else:
        shown = arms
    figure = pictures.draw_arms(shown, estimates, estimates.get(DENSE), title)
    curves.save(figure, directory / f"{stem}.png", source)
    if study.figure == "buffer":
        kept = {name: lines for name, lines in arms.items() if name != DENSE}
        figure = pictures.draw_buffer(kept, group.config["distance_threshold"], title)
        curves.save(figure, directory / f"{stem}-buffer.png", source)
    if study.figure == "sparsity":
        curves.save(
            pictures.draw_sparsity(_by_sparsity(group, arms), title), directory / f"{stem}-sparsity.png", source
        )


def _by_sparsity(group: Group, arms: Mapping[str, Sequence[Line]]) -> dict[str, dict[float, Estimate]]:
    found: dict[str, dict[float, Estimate]] = {}
    for name, lines in arms.items():
        if name != DENSE and DENSE in arms:
            relative = statistics.estimate(statistics.ratio, group.sample(name), group.sample(DENSE))
            found.setdefault(lines[0]["method"], {})[lines[0]["actor_sparsity"]] = relative
    return found


def _stems(found: Sequence[Group]) -> list[str]:
    """A file name for each group."""
    taken: list[str] = []
    for group in found:
        kind = "" if group.kind == records.LEARNING else f"-{group.kind}"
        stem = f"{group.row.replace('/', '-')}{kind}-{group.config['total_steps']}"
        count = sum(other == stem or other.startswith(f"{stem}-") for other in taken)
        taken.append(stem if count == 0 else f"{stem}-{count + 1}")
    return taken


def _failed(lines: Sequence[Line]) -> str:
    count = sum(line["diverged"] for line in lines)
    return f" ({count} diverged)" if count else ""


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _shown(found: Estimate, factor: float = 1, digits: int | None = None) -> str:
    """A number and its interval; by itself with three digits or more."""
    numbers = [factor * number for number in (found.value, found.low, found.high)]
    if digits is None:
        digits = max(0, 2 - int(np.log10(max(map(abs, numbers), default=1) or 1)))
    value, low, high = (f"{number:.{digits}f}" for number in numbers)
    return f"{value} [{low}, {high}]"


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
