"""Which figures a section of a report shows, and of which runs; `figures` draws them."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from paper import figures, store, tables
from paper.sections import Group, Section
from paper.store import Line
from paper.study import DENSE, Study
from rlx2_jax.analysis import statistics
from rlx2_jax.analysis.statistics import Estimate


def draw(section: Section, study: Study) -> dict[str, Figure]:
    """All pictures of a section, by what their names end with."""
    group, title = section.group, section.title
    arms = group.arms(study)
    estimates = {name: statistics.estimate(statistics.mean, group.sample(name)) for name in arms}
    if study.figure == "sparsity" and not study.search:
        # Methods times sparsities are too many for panels; a search has few steps, and each of them matters.
        shown = {name: lines for name, lines in arms.items() if name in (DENSE, study.focus)} or arms
    elif group.kind == store.CLONING:
        # The teacher's course is one of environment steps; its score is the line.
        shown = {name: lines for name, lines in arms.items() if name != DENSE}
    else:
        shown = arms
    names = [arm.name for arm in study.arms(group.config["total_steps"])]
    colors = figures.arm_colors(names, group.focus(study))
    found = {"": figures.draw_arms(shown, estimates, estimates.get(DENSE), title, colors)}
    if study.figure == "buffer":
        kept = {name: lines for name, lines in arms.items() if name != DENSE}
        c = group.dynamic or group.config
        found["-buffer"] = figures.draw_buffer(kept, c["distance_threshold"], c["buffer_min"], title, colors)
    if study.figure == "sparsity" and (relative := by_sparsity(group, study)):
        found["-sparsity"] = figures.draw_sparsity(relative, title)
    if section.variants:
        found["-variants"] = _draw_variants(section, study)
    return found


def _draw_variants(section: Section, study: Study) -> Figure:
    """Each arm that has variants, as it is in the section, and these beside it."""
    group = section.group
    names = [arm.name for arm in study.arms(group.config["total_steps"])]
    of_arm = figures.arm_colors(names, group.focus(study))
    shown: dict[str, Sequence[Line]] = {}
    colors: dict[str, str] = {}
    estimates: dict[str, Estimate] = {}
    for name in names:
        changed = [(f"{name} {section.differing(v)}", v) for v in section.variants if name in v.arms(study)]
        own = [(name, group)] if changed and name in group.arms(study) else []
        for label, members in own + changed:
            shown[label] = members.arms(study)[name]
            colors[label] = of_arm[name]
            estimates[label] = statistics.estimate(statistics.mean, members.sample(name))
    dense = statistics.estimate(statistics.mean, group.sample(DENSE))
    return figures.draw_arms(shown, estimates, dense, f"{section.title}: variants", colors)


def by_sparsity(group: Group, study: Study) -> dict[str, dict[float, Estimate]]:
    """Scores relative to the dense agent's, by method and sparsity; nothing without a dense agent that has learned."""
    arms = group.arms(study)
    found: dict[str, dict[float, Estimate]] = {}
    for name, lines in arms.items():
        relative = None
        if name != DENSE and DENSE in arms:
            relative = tables.relative(statistics.ratio, group.sample(name), group.sample(DENSE))
        if relative is not None:
            found.setdefault(lines[0]["method"], {})[lines[0]["actor_sparsity"]] = relative
    return found
