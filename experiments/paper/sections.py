"""Which runs are compared with which: groups of those that may be, and sections of a report made of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from paper import store
from paper.store import Line
from paper.study import DENSE, SPARSITY_SETTINGS, Study
from rlx2_jax.config import Config, presets
from rlx2_jax.training import workdirs


class Group(NamedTuple):
    """Runs that may be compared."""

    row: str
    kind: str
    """`learning` or `cloning`; the teachers are among the runs then."""
    conditions: dict[str, Any]
    """What all of them share: settings that are not the defaults, and the number of steps."""
    lines: tuple[Line, ...]

    @property
    def title(self) -> str:
        """What they have in common, in short."""
        agent, _, env = self.row.partition("/")
        how = "" if self.kind == store.LEARNING else ", imitating the dense agent"
        return f"{agent.upper()} on {env}{how}"

    @property
    def config(self) -> dict[str, Any]:
        """Configuration of one of the runs, with what its arm sets."""
        return self.lines[-1]["config"]

    @property
    def dynamic(self) -> dict[str, Any] | None:
        """The configuration of a run with a dynamic buffer, if there is one."""
        return next((line["config"] for line in self.lines if line["config"]["dynamic_buffer"]), None)

    def arms(self, study: Study) -> dict[str, list[Line]]:
        """Runs by arm, in the study's order, for the arms that have any."""
        names = [arm.name for arm in study.arms(self.config["total_steps"])]
        found = {name: [line for line in self.lines if line["arm"] == name] for name in names}
        return {name: lines for name, lines in found.items() if lines}

    def paper(self, study: Study) -> Mapping[str, float]:
        """The paper's numbers by arm; none at other sparsities than the paper's."""
        return study.paper.get(self.row, {}) if self.has_own_sparsities else {}

    @property
    def has_own_sparsities(self) -> bool:
        """Whether the sparsities, where an arm does not say, are the row's own."""
        row = presets.PRESETS.get(self.row, {})
        return all(self.sparsity(name) == row.get(name, getattr(Config(), name)) for name in SPARSITY_SETTINGS)

    def sparsity(self, name: str) -> float:
        """Value of `actor_sparsity` or `critic_sparsity` that arms have where they set none of their own."""
        return self.conditions.get(name, getattr(Config(), name))

    def values(self, setting: str) -> set[str]:
        """Values of a setting, as JSON: one if all arms share it, and else the arms' own."""
        if setting in self.conditions:
            return {json.dumps(self.conditions[setting])}
        # Settings that are newer than a record have their defaults there.
        return {json.dumps(line["config"].get(setting, _default(setting))) for line in self.lines}

    def describe_setting(self, setting: str) -> str:
        """What all arms share of a setting, in words if each has its own."""
        shared = self.conditions.get(setting, _default(setting))
        if shared is None:
            value, *others = self.values(setting)
            shared = "by arm" if others else json.loads(value)
        return str(shared)

    def focus(self, study: Study) -> str:
        """The arm that it is about."""
        return study.focus if self.kind == store.LEARNING else f"clone-{study.focus}"

    def sample(self, arm: str) -> list[np.ndarray]:
        """Scores of one arm, fit for `statistics`."""
        return [store.scores(self.lines, arm)]


def _default(setting: str) -> Any:
    """Value of a setting that nobody has named; None of one that is no more."""
    return getattr(Config(), setting, None)


def groups(lines: Sequence[Line]) -> list[Group]:
    """Runs by what they may be compared with, in the order of the file."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for line in lines:
        key = line["row"], line["kind"], json.dumps(line["conditions"], sort_keys=True)
        found.setdefault(key, []).append(line)
    for (row, kind, conditions), members in found.items():
        if kind == store.CLONING:
            # A clone is measured by its teacher.
            teachers = found.get((row, store.LEARNING, conditions), [])
            members[:0] = [line for line in teachers if line["arm"] == DENSE]
    return [Group(row, kind, json.loads(about), tuple(members)) for (row, kind, about), members in found.items()]


class Section(NamedTuple):
    """A group, and its variants: those of other settings that compare nothing with a dense agent of their own."""

    group: Group
    variants: tuple[Group, ...] = ()
    title: str = ""
    """Its heading, which no other section of the report has."""
    stem: str = ""
    """How the names of its pictures begin."""

    @property
    def digest(self) -> str:
        """Of its runs; its pictures change when it does."""
        lines = [line for group in (self.group, *self.variants) for line in group.lines]
        return hashlib.sha256(json.dumps(lines, sort_keys=True).encode()).hexdigest()[:16]

    def differing(self, variant: Group) -> str:
        """The settings of a variant that are not the section's, those of a whole reading of the method by its name."""
        names = sorted({*self.group.conditions, *variant.conditions})
        names = [name for name in names if variant.values(name) != self.group.values(name)]
        differ = {name: variant.describe_setting(name) for name in names}
        for preset, settings in presets.READINGS.items():
            if settings and all(differ.get(name) == str(value) for name, value in settings.items()):
                rest = {name: value for name, value in differ.items() if name not in settings}
                differ = {"preset": preset, **rest}
        return ", ".join(f"{name}={value}" for name, value in differ.items())


def sections(lines: Sequence[Line]) -> list[Section]:
    """What a report shows of its runs, in its order: the longest ones first."""
    found = sorted(_with_variants(groups(lines)), key=lambda section: -section.group.config["total_steps"])
    mains = [section.group for section in found]
    named = zip(found, _titles(mains), _stems(mains), strict=True)
    return [section._replace(title=title, stem=stem) for section, title, stem in named]


def _with_variants(found: Sequence[Group]) -> list[Section]:
    """Groups in the order of the file, each variant with the group that it differs least from."""
    variants: dict[int, list[Group]] = {i: [] for i, group in enumerate(found) if _rank(group) == _best(group, found)}
    for group in found:
        if _rank(group) < _best(group, found):
            mains = [i for i in variants if _kin(found[i]) == _kin(group)]
            nearest = min(mains, key=lambda i: Section(found[i]).differing(group).count("="))
            variants[nearest].append(group)
    return [Section(found[i], tuple(members)) for i, members in variants.items()]


def _kin(group: Group) -> tuple[Any, ...]:
    """What variants share."""
    return group.row, group.kind, group.config["total_steps"], group.config["backend"]


def _rank(group: Group) -> int:
    """How much a group compares: 2 if other arms with the dense one, 1 if that stands alone, 0 without it."""
    arms = {line["arm"] for line in group.lines}
    return (DENSE in arms) + (DENSE in arms and len(arms) > 1)


def _best(group: Group, found: Sequence[Group]) -> int:
    return max(_rank(other) for other in found if _kin(other) == _kin(group))


def _titles(found: Sequence[Group]) -> list[str]:
    """A heading for each group; where two would be the same, with the settings in which these differ."""
    plain = []
    for group in found:
        unit = "steps" if group.kind == store.LEARNING else "updates"
        plain.append(f"{group.title}, {group.config['total_steps']:,} {unit}")
    titles = []
    for group, title in zip(found, plain, strict=True):
        others = [other for other, same in zip(found, plain, strict=True) if same == title]
        settings = sorted({name for other in others for name in other.conditions})
        differ = [name for name in settings if any(other.values(name) != group.values(name) for other in others)]
        titles.append(", ".join([title, *(f"{name} {group.describe_setting(name)}" for name in differ)]))
    return titles


def _stems(found: Sequence[Group]) -> list[str]:
    """A file name for each group."""
    taken: list[str] = []
    for group in found:
        kind = "" if group.kind == store.LEARNING else f"-{group.kind}"
        stem = f"{workdirs.in_name(group.row)}{kind}-{group.config['total_steps']}"
        count = sum(other == stem or other.startswith(f"{stem}-") for other in taken)
        taken.append(stem if count == 0 else f"{stem}-{count + 1}")
    return taken
