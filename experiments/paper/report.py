"""A study's report: `README.md` and pictures, made of `runs.jsonl` alone, so that anyone can make them again.

What people found out is in `findings.md` beside it, and is taken over as it stands. A section compares runs of the same
length, backend and settings. Runs of other settings that compare nothing with a dense agent of their own are variants
of a section that does.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from paper import comparisons, pictures, search, store, tables
from paper.sections import Group, Section, sections
from paper.store import Line
from paper.study import DENSE, SPARSITY_SETTINGS, Study
from rlx2_jax.analysis import accounting, statistics
from rlx2_jax.analysis.statistics import Estimate
from rlx2_jax.config import PAPER_STEPS, presets
from rlx2_jax.envs import brax
from rlx2_jax.io import files
from rlx2_jax.training import workdirs
from rlx2_jax.viz import curves

FINDINGS = "findings.md"

SCALED = ("warmup_steps", "evolve_interval", "n_step_delay", "buffer_check_interval")
"""Points in time, named in every section."""


PAPER_COSTS = accounting.TABLE_2 | {presets.on_mujoco(row): costs for row, costs in accounting.TABLE_2.items()}
"""Size and FLOPs that the paper tells, by row."""

DISTANCES = {
    "half_mse": "half the squared error per action dimension to the noise-free action stored",
    "l2": "Euclidean distance to the action taken",
}
"""What `distance` says, in words."""

READING = """\
Intervals are 95 % percentile-bootstrap intervals over seeds, and too narrow for a handful of them: of normally
distributed scores they hold the mean in 75 % of cases with three seeds, 80 % with four and 88 % with eight; that of
three reaches from the lowest score to the highest. P(a better) is the share of pairs of seeds in which a scores more;
[1.00, 1.00] says only that no seed of one reaches one of the other, which between three and three of the same kind
happens once in ten times, between four and four once in 35. "p" is that of a two-sided permutation test of the means,
exact up to eight seeds and eight; it cannot be below 0.1 between three and three, 0.029 between four and four. The
interquartile mean of three seeds is their mean.
"Difference" is ours minus the paper's in points, with the uncertainty of ours alone; "size" and "FLOPs" (of training;
of acting) are relative to the dense agent, in brackets the paper's; "seeds" are the scores, in the order of the seeds.
The paper's agents were trained for 3 million steps on MuJoCo's tasks, {ours}: compare
percentages of the dense agent, not returns."""
"""How to read the tables, but for what our runs were made on."""


def write(directory: Path, name: str, study: Study) -> None:
    """Make README.md and the pictures of a study's directory, and remove pictures of earlier reports."""
    drawn, lines = set(), store.read(directory)
    for section in sections(lines):
        for kind, figure in pictures.draw(section, study).items():
            path = directory / f"{section.stem}{kind}.png"
            curves.save(figure, path, section.digest)
            drawn.add(path)
    # What lies beside them is a person's own.
    stems = tuple(f"{workdirs.in_name(row)}-" for row in {*study.rows, *(line["row"] for line in lines)})
    for path in set(directory.glob("*.png")) - drawn:
        if path.name.startswith(stems):
            path.unlink()
    files.write_bytes(directory / "README.md", markdown(directory, name, study).encode())


def digests(directory: Path) -> dict[str, str]:
    """Digest of each section's runs, by how the names of its pictures begin; every picture holds that of its runs."""
    return {section.stem: section.digest for section in sections(store.read(directory))}


def markdown(directory: Path, name: str, study: Study) -> str:
    """The text of README.md."""
    lines = store.read(directory)
    found = sections(lines)
    mains = [section.group for section in found]
    parts = [
        f"# {study.title}",
        study.question,
        f"Made of [runs.jsonl](runs.jsonl) ({len(lines)} runs) by "
        f"`python experiments/reproduce.py --study={name} --report_only`.",
        READING.format(ours=_tasks(mains)),
    ]
    for section in found:
        parts += _section(section, study)
    parts += [*_across(mains, study), *comparisons.across(mains, study)]
    findings = directory / FINDINGS
    if findings.exists():
        parts += ["## What was found", findings.read_text(encoding="utf-8").strip()]
    parts += ["## Where the runs come from", *comparisons.origins(lines)]
    return "\n\n".join(parts) + "\n"


def _section(section: Section, study: Study) -> list[str]:
    group, title, stem = section.group, section.title, section.stem
    shown = [f"![learning curves and scores]({stem}.png)"]
    if study.figure == "buffer" or (study.figure == "sparsity" and pictures.by_sparsity(group, study)):
        shown.append(f"![{study.figure}]({stem}-{study.figure}.png)")
    searched = [_search(group)] if study.search else []
    parts = [f"## {title}", _conditions(group), *shown, *searched, _table(group, study)]
    parts += [*comparisons.published(group, study), *comparisons.dead_inputs(group, study)]
    if section.variants:
        parts += [
            f"### {title}: variants",
            "The same but for the settings named, compared with the arms above: with the same arm on the same seeds, "
            "and with the dense agent as it is there.",
            f"![learning curves and scores of variants]({stem}-variants.png)",
            _variants(section, study),
        ]
    return parts


def _variants(section: Section, study: Study) -> str:
    rows = [["settings", "arm", "n", "score", "as above, same seeds", "% of that", "p", "% of dense above", "seeds"]]
    dense = section.group.sample(DENSE)
    for variant in section.variants:
        for name, lines in variant.arms(study).items():
            sample = variant.sample(name)
            others = section.group.arms(study).get(name, [])
            shared = {line["seed"] for line in lines} & {line["seed"] for line in others}
            common, above = (
                [store.scores([line for line in some if line["seed"] in shared], name)] for some in (lines, others)
            )
            rows.append(
                [
                    section.differing(variant),
                    name,
                    _count(lines),
                    tables.shown(statistics.estimate(statistics.mean, sample)),
                    tables.shown(statistics.estimate(statistics.mean, above) if shared else None),
                    tables.shown(tables.relative(statistics.ratio, common, above) if shared else None, 100, 1),
                    _p_value(common, above if shared else None),
                    tables.shown(tables.relative(statistics.ratio, sample, dense), 100, 1),
                    _each(sample),
                ]
            )
    return tables.markdown(rows)


def _search(group: Group) -> str:
    """What the search has found so far."""
    seeds = sorted({line["seed"] for line in group.lines})
    found = search.search(search.scores_of(group.lines), seeds)
    rows = [["sparsity", "n", "% of dense, interval of a decision", "verdict"]]
    for step in found.steps:
        verdict = "kept" if step.kept else "lost"
        few = step.ratio.n < search.FIRST_SEEDS
        why = f"fewer than {search.FIRST_SEEDS} seeds decide nothing" if few else "its interval holds 97 %"
        rows.append(
            [
                f"{100 * step.sparsity:g} %",
                str(step.ratio.n),
                tables.shown(step.ratio, 100, 1),
                verdict if step.decided else f"{verdict}, by the ratio alone: {why}",
            ]
        )
    if found.missing is not None:
        sparsity, lacking = found.missing
        end = f"Not at its end: next are {len(lacking)} runs at {100 * sparsity:g} %."
    elif found.largest is None:
        end = f"**No sparsity of the grid, from {100 * search.GRID[0]:g} % on, keeps 97 % of the dense return.**"
    else:
        end = f"**Largest sparsity of the grid that keeps 97 % of the dense return: {100 * found.largest:g} %.**"
    if not found.learned:
        end = "Not every dense agent scores above zero, so there is nothing to keep: train for longer."
    if any(not step.decided for step in found.steps):
        end += " Not all steps are decided by their intervals: more seeds may change this."
    end += f" Searched with the {len(seeds)} seeds there are."
    return "\n\n".join([tables.markdown(rows), end]) if found.steps else end


def _on_brax(group: Group) -> bool:
    return group.config["env"] in brax.TASKS


def _tasks(groups: Sequence[Group]) -> str:
    """What our runs were made on, beside the paper's."""
    if all(map(_on_brax, groups)):
        return "ours on Brax's, which are others"
    if any(map(_on_brax, groups)):
        return "some of ours on Brax's, which are others"
    fewer = all(group.config["total_steps"] < PAPER_STEPS for group in groups)
    return "ours on later versions of them" + (", for fewer steps" if fewer else "")


def _conditions(group: Group) -> str:
    c = group.config
    physics = f"Brax `{c['backend']}`" if _on_brax(group) else f"Engine `{c['backend']}`"
    said_elsewhere = {*SCALED, *SPARSITY_SETTINGS, "backend", "total_steps", "num_envs"}
    special = [f"`{name}={value}`" for name, value in group.conditions.items() if name not in said_elsewhere]
    actor, critic = (f"{100 * group.sparsity(name):g} %" for name in SPARSITY_SETTINGS)
    settings = f"; sparse ones at {actor} in the actor and {critic} in the critics, unless named"
    settings += f"; settings of all arms: {', '.join(special)}" if special else ""
    if group.kind == store.CLONING:
        return (
            f"Actors that imitate the dense agent of their seed: {c['total_steps']:,} Adam steps on batches of "
            f"{c['batch_size']} of its {c['buffer_max']:,} observations on {physics}, gathered with "
            f"exploration noise {c['explore_noise']:g}; links move every {c['evolve_interval']:,} updates{settings}. "
            f"Score: mean of the last {c['score_evaluations']} evaluations, every {c['eval_every']:,} updates, of "
            f"{c['eval_episodes']} episodes each."
        )
    times = ", ".join(f"{name} {_time(group, name)}" for name in SCALED)
    environments = f"{c['num_envs']} environment" + ("s" if c["num_envs"] > 1 else "")
    return (
        f"{physics}; {c['total_steps']:,} environment steps where the paper has {PAPER_STEPS:,}, its "
        f"points in time times {c['schedule_scale']:.3g} unless named ({times}); {environments}, "
        f"{c['update_ratio']:g} update per step{_buffers(group)}{settings}. Score: mean of the last "
        f"{c['score_evaluations']} evaluations, every {c['eval_every']:,} steps, of {c['eval_episodes']} episodes each "
        "from fresh initial states."
    )


def _time(group: Group, name: str) -> str:
    """A point in time that all runs share, if they do."""
    value, *others = group.values(name)
    return "by arm" if others else f"{json.loads(value):,}"


def _buffers(group: Group) -> str:
    """The buffers of a group's runs, as part of a sentence."""
    sizes = {line["config"]["buffer_max"] for line in group.lines}
    size = f"of at most {max(sizes):,} transitions, not scaled" if len(sizes) == 1 else "of the arm's size"
    text = f"; a buffer {size}"
    if (c := group.dynamic) is not None:
        what = f"the policy distance of its oldest is over {c['distance_threshold']:g} ({DISTANCES[c['distance']]})"
        how = f"drops {100 * c['drop_ratio']:g} % at a check when" if c["drop_rule"] == "once" else "drops as long as"
        text += f"; a dynamic one {how} {what}, and keeps {c['buffer_min']:,}"
    return text


def _table(group: Group, study: Study) -> str:
    arms = group.arms(study)
    paper = group.paper(study)
    focus = group.focus(study)
    samples = {name: group.sample(name) for name in arms}
    head = ["arm", "n", "score", "interquartile mean", "% of dense", "paper, %", "difference", f"P({focus} better)"]
    rows = [[*head, f"p, {focus}", "p, dense", "size", "FLOPs, training", "FLOPs, test", "seeds"]]
    for name, lines in arms.items():
        sample = samples[name]
        of_focus, of_dense = (None if other == name else samples.get(other) for other in (focus, DENSE))
        relative = None if of_dense is None else tables.relative(statistics.ratio, sample, of_dense)
        better = None if of_focus is None else statistics.estimate(statistics.improvement, of_focus, sample)
        rows.append(
            [
                f"**{name}**" if name == focus else name,
                _count(lines),
                tables.shown(statistics.estimate(statistics.mean, sample)),
                tables.shown(statistics.estimate(statistics.iqm, sample)),
                tables.shown(relative, 100, 1),
                f"{paper[name]:g}" if name in paper else "-",
                _difference(relative, paper.get(name)),
                tables.shown(better, 1, 2),
                _p_value(sample, of_focus),
                _p_value(sample, of_dense),
                *_costs(lines[0], bool(paper)),
                _each(sample),
            ]
        )
    return tables.markdown(rows)


def _p_value(sample: statistics.Sample, other: statistics.Sample | None) -> str:
    """P-value of the permutation test; one run alone has none."""
    if other is None or min(sample[0].size, other[0].size) == 1:
        return "-"
    p = statistics.permutation(sample, other)
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def _difference(relative: Estimate | None, paper: float | None) -> str:
    """Ours minus the paper's, in points."""
    if relative is None or paper is None:
        return "-"
    value, low, high = (f"{100 * number - paper:+.1f}" for number in (relative.value, relative.low, relative.high))
    return f"{value} [{low}, {high}]" if relative.fewest > 1 else value


def _across(found: Sequence[Group], study: Study) -> list[str]:
    """Rows of an agent together, where runs on several tasks have the same arms, one of them dense, made in one way."""
    alike: dict[str, list[Group]] = {}
    for group in found:
        if DENSE in group.arms(study) and group.kind == store.LEARNING:
            own = SPARSITY_SETTINGS if group.has_own_sparsities else ()
            same = {k: v for k, v in group.conditions.items() if k not in own}
            agent = group.row.partition("/")[0]
            # A row with other arms, such as one that is not complete, would leave the table those they share.
            key = json.dumps([agent, bool(own), same, list(group.arms(study))], sort_keys=True)
            alike.setdefault(key, []).append(group)
    parts = []
    for members in alike.values():
        if len(members) > 1:
            parts += [f"## {', '.join(group.title for group in members)} together", _together(members, study)]
    return parts


def _together(members: Sequence[Group], study: Study) -> str:
    arms = members[0].arms(study)
    dense = [group.sample(DENSE)[0] for group in members]
    focus = [group.sample(study.focus)[0] for group in members] if study.focus in arms else None
    head = [
        "arm",
        "runs",
        "% of dense, mean of tasks",
        "paper, mean of tasks",
        "interquartile mean of runs, % of dense, tasks weighing the same",
    ]
    rows = [[*head, f"P({study.focus} better)"]]
    for name in arms:
        samples = [group.sample(name)[0] for group in members]
        paper = [group.paper(study).get(name) for group in members]
        better = None
        if focus is not None and name != study.focus:
            better = statistics.estimate(statistics.improvement, focus, samples)
        rows.append(
            [
                name,
                str(sum(map(len, samples))),
                "100" if name == DENSE else tables.shown(tables.relative(statistics.ratio, samples, dense), 100, 1),
                f"{np.mean([p for p in paper if p is not None]):.1f}" if None not in paper else "-",
                "-" if name == DENSE else tables.shown(tables.relative(statistics.iqm_ratio, samples, dense), 100, 1),
                tables.shown(better, 1, 2),
            ]
        )
    return tables.markdown(rows)


def _count(lines: Sequence[Line]) -> str:
    count = sum(line["diverged"] for line in lines)
    return f"{len(lines)}" + (f" ({count} diverged, counted with the lowest evaluation)" if count else "")


def _each(sample: statistics.Sample) -> str:
    """The scores of one arm."""
    return ", ".join(f"{score:.0f}" if abs(score) >= 1000 else f"{score:.4g}" for score in sample[0])


def _costs(line: Line, compared: bool) -> list[str]:
    """Size and FLOPs of a run; those of RLx2, which alone the paper tells, beside the paper's if they are compared."""
    paper = PAPER_COSTS.get(line["row"]) if compared and line["arm"] == "rlx2" else None
    found = []
    for name in ("size", "flops_train", "flops_test"):
        ours = line[f"{name}_ratio"]
        beside = "" if paper is None else f" ({getattr(paper, name):.3f})"
        found.append("-" if ours is None else f"{ours:.3f}{beside}")
    return found
