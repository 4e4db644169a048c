"""The studies of the paper. Each is a table of arms, settings that differ, over rows, an agent on a task.

| study | paper | arms, beside the dense agent |
|---|---|---|
| `table2` | Table 2 | Tiny, SS, SET, RigL, RLx2 at the row's sparsities |
| `table3-topology` | Table 3, left | RLx2's value learning on Tiny, static, randomly and gradient-grown links |
| `table3-nstep` | Table 3, right | RLx2 with targets of 1 to 5 steps |
| `buffer` | section 4.2.2 | RLx2 with a dynamic buffer, with fixed ones, and with one that forgets nothing |
| `sparsity-curve` | sensitivity to sparsity | RLx2, RigL and SS at sparsities from 80 to 99 % |
| `tickets` | lottery tickets | random, winning and dynamic ticket, learning by reward and by imitation |
| `mask-quality` | masks found | the mask a run begins with, and those that RigL and RLx2 found, trained anew |
| `frontier` | ultimate compression ratio | RLx2 at the sparsities that a search asks for (see `search`) |
| `layernorm` | not in the paper | RLx2, and both with layer normalisation before each ReLU |
| `table2-mujoco` | Table 2, on its own tasks | as `table2` |
| `ant-inputs` | not in the paper | SS and RLx2 on Ant, with 84 observations that are always zero and without |
| `delay` | section 4.2.1 | RLx2 whose three-step targets begin at once, early, as late as the paper's, and never |
| `beyond` | not in the paper | RLx2 at half the paper's size, with one change each and with several |
| `beyond-frontier` | ultimate compression ratio | `frontier` with the changes that `beyond` keeps |

To add one, add it here; runs, records and reports follow.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from paper import search
from paper.published import DENSE_RETURNS, Published
from rlx2_jax import envs
from rlx2_jax.analysis import accounting
from rlx2_jax.config import PAPER_STEPS, Config, RunConfig, methods, presets, registry, resolve
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks.structure import structure
from rlx2_jax.training import workdirs

Settings = Mapping[str, Any]
"""Values of `Config` fields."""

DENSE = "dense"
"""The arm that scores are measured by."""

SPARSITY_SETTINGS = ("actor_sparsity", "critic_sparsity")
"""Settings that say how sparse networks are."""


class Arm(NamedTuple):
    """One column of a study: what it changes in the row's configuration."""

    name: str
    settings: Settings
    ticket: str | None = None
    """The arm whose run, of the same seed, found the masks that this one begins with."""
    teacher: str | None = None
    """The arm whose run, of the same seed, this one imitates; None for reinforcement learning."""
    fitted: Callable[[RunConfig], Settings] | None = None
    """Further settings, made of the configuration that it would have without them."""


class Contrast(NamedTuple):
    """What a study says beforehand of two rows: how an arm's share of the dense return differs between them."""

    rows: tuple[str, str]
    """The first is compared with the second."""
    predicted: Mapping[str, int]
    """By arm: 1 if its share is larger on the first, -1 if it is smaller."""


class Screening(NamedTuple):
    """A rule, fixed before any run, by which arms of short runs go on to long ones."""

    steps: int
    """Length of the short runs."""
    arms: tuple[str, ...]
    """Those that it is about."""
    least: float
    """One goes on if its score relative to the study's first reference, mean of the tasks, is above this."""


class Study(NamedTuple):
    """A table or figure of the paper."""

    title: str
    question: str
    """What it answers, in one or two sentences."""
    rows: tuple[str, ...]
    """`agent/env` in the order in which they are run by default."""
    seeds: int
    """How many, by default."""
    arms: Callable[[int], tuple[Arm, ...]]
    """Arms of a study whose runs take that many environment steps."""
    focus: str
    """The arm that the study is about."""
    paper: Mapping[str, Mapping[str, float]] = {}
    """The paper's return in percent of the dense agent's, by row and arm."""
    figure: str | None = None
    """What is drawn beside learning curves and bars: `buffer` or `sparsity`."""
    search: bool = False
    """Whether `search.search` chooses which arms are run, with how many seeds."""
    settings: Mapping[str, Any] = {}
    """What all its runs have where nothing else is asked for."""
    of_row: Mapping[str, Settings] = {}
    """The same of single rows, over those of Table 2."""
    published: Mapping[str, tuple[Published, ...]] = {}
    """Dense returns of others, by row."""
    references: tuple[str, ...] = ()
    """Arms beside the dense one that the others are measured by."""
    screening: Screening | None = None
    """How arms of short runs go on to long ones, if they do."""
    contrast: Contrast | None = None
    """What it says beforehand of two rows, if it does."""


class Run(NamedTuple):
    """One run of a study."""

    row: str
    arm: str
    config: RunConfig
    """Configuration without the place of another run's masks, where it begins with those."""
    ticket: str | None = None
    """Ticket of its arm."""
    teacher: str | None = None
    """Teacher of its arm."""
    conditions: Mapping[str, Any] = {}
    """Settings that all arms share, as far as leaving them out would change a run, and the number of steps: what runs
    must agree in to be compared."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms whose runs have to be there before it."""
        return tuple(arm for arm in (self.ticket, self.teacher) if arm is not None)

    @property
    def key(self) -> tuple[str, str, int]:
        """Row, arm and seed."""
        return self.row, self.arm, self.config.seed

    @property
    def sources(self) -> tuple[tuple[str, str, int], ...]:
        """Keys of the runs that have to be there before it."""
        return tuple((self.row, arm, self.config.seed) for arm in self.needs)


TABLE_2 = {
    "td3/halfcheetah": {"tiny": 86.3, "ss": 77.1, "set": 92.6, "rigl": 90.8, "rlx2": 99.8},
    "td3/hopper": {"tiny": 64.5, "ss": 67.7, "set": 66.5, "rigl": 90.6, "rlx2": 97.0},
    "td3/walker2d": {"tiny": 60.8, "ss": 42.9, "set": 39.3, "rigl": 35.7, "rlx2": 98.1},
    "td3/ant": {"tiny": 16.5, "ss": 49.6, "set": 62.5, "rigl": 68.5, "rlx2": 103.9},
    "sac/halfcheetah": {"tiny": 95.0, "ss": 75.4, "set": 94.8, "rigl": 89.8, "rlx2": 102.2},
    "sac/hopper": {"tiny": 89.1, "ss": 81.6, "set": 103.9, "rigl": 110.0, "rlx2": 109.7},
    "sac/walker2d": {"tiny": 73.8, "ss": 83.4, "set": 95.8, "rigl": 81.9, "rlx2": 103.2},
    "sac/ant": {"tiny": 49.6, "ss": 49.3, "set": 79.8, "rigl": 90.9, "rlx2": 105.6},
}


def _on_mujoco(by_row: Mapping[str, Any]) -> dict[str, Any]:
    """The same by rows on the paper's own tasks."""
    return {presets.on_mujoco(row): values for row, values in by_row.items()}


_TD3_ROWS = ("td3/hopper", "td3/walker2d", "td3/ant", "td3/halfcheetah")
_SAC_ROWS = ("sac/hopper", "sac/walker2d", "sac/halfcheetah", "sac/ant")

_FIRST_TASKS = ("Hopper-v4", "Ant-v3", "HalfCheetah-v4", "Walker2d-v4")
"""The paper's own tasks in the order of what they are expected to tell."""

EVAL_EVERY = 5000
"""Environment steps between evaluations of a study's runs, at most: curves compare whatever simulates the task."""

MUJOCO: Settings = {
    "total_steps": 1_000_000,
    "schedule_scale": 1.0,
    "kernel_init": "release",
    "num_envs": 2,
    "eval_every": EVAL_EVERY,
    "score_evaluations": 30,
}
"""Protocol of the studies on MuJoCo's tasks: the paper's settings as its release has them, points in time unscaled
(warm-up 25,000 steps, three-step targets after 300,000 updates, events every 10,000), and a million steps, as most have
them since. The release steps one environment. TD3 updates its actor every second step, so an iteration here holds two,
and two environments are the fewest."""


def _by_row(**columns: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """Columns of Table 3, whose rows are HalfCheetah, Hopper, Walker2d, Ant."""
    rows = ("td3/halfcheetah", "td3/hopper", "td3/walker2d", "td3/ant")
    return {row: {arm.replace("_", "-"): column[i] for arm, column in columns.items()} for i, row in enumerate(rows)}


def _methods(steps: int) -> tuple[Arm, ...]:
    del steps
    return tuple(Arm(name, {"method": name}) for name in methods.METHODS)


def _by_weight(steps: int) -> tuple[Arm, ...]:
    """The same in the order in which runs are worth most."""
    del steps
    return tuple(Arm(name, {"method": name}) for name in ("rlx2", DENSE, "rigl", "ss", "set", "tiny"))


ALWAYS_ZERO: Mapping[str, range] = {"Ant-v3": range(27, 111)}
"""Observations that are always zero, by task: those of contact forces, as under MuJoCo 2.0."""


def _inputs(steps: int) -> tuple[Arm, ...]:
    del steps
    return tuple(Arm(name, {"method": name}) for name in (DENSE, "ss", "rlx2"))


DELAY_SHARES = (0, 0.1, 0.3)
"""When three-step targets begin, as shares of a run. In a million steps the second is the paper's 300,000 of 3 million
updates, scaled with the run, and the third the same, unscaled."""


def _delays(steps: int) -> tuple[Arm, ...]:
    of = lambda share: {"n_step_delay": round(share * steps)}
    # An agent of one-step targets takes no notice; with the last delay its run is that of `table2-mujoco`.
    return (
        Arm(DENSE, {"method": "dense", **of(DELAY_SHARES[-1])}),
        *(Arm(f"from-{share:g}", {"method": "rlx2", **of(share)}) for share in DELAY_SHARES),
        Arm("never", {"method": "rlx2", "n_step": 1, **of(DELAY_SHARES[-1])}),
    )


def _topologies(steps: int) -> tuple[Arm, ...]:
    del steps
    value_learning = {"n_step": 3, "dynamic_buffer": True}
    return (
        Arm(DENSE, {"method": "dense"}),
        *(Arm(name, {"method": name, **value_learning}) for name in ("tiny", "ss", "set")),
        Arm("rlx2", {"method": "rlx2"}),
    )


def _n_steps(steps: int) -> tuple[Arm, ...]:
    del steps
    return (
        Arm(DENSE, {"method": "dense"}),
        *(Arm(f"{n}-step", {"method": "rlx2", "n_step": n}) for n in range(1, 6)),
    )


BUFFER_SHARES = (1 / 30, 1 / 10, 1 / 3)
"""Capacities of the fixed buffers: 100,000, 300,000 and 1 million transitions of the paper's 3 million steps."""


def _buffers(steps: int) -> tuple[Arm, ...]:
    fixed = {"method": "rlx2", "dynamic_buffer": False}
    sizes = [round(share * steps) for share in BUFFER_SHARES]
    return (
        Arm(DENSE, {"method": "dense"}),
        Arm("dynamic", {"method": "rlx2"}),
        *(Arm(f"fixed-{_short(size)}", {**fixed, "buffer_max": size}) for size in sizes),
        Arm("unlimited", {**fixed, "buffer_max": steps}),
    )


def _normalised(steps: int) -> tuple[Arm, ...]:
    del steps
    methods_of = {DENSE: {"method": "dense"}, "rlx2": {"method": "rlx2"}}
    with_norm = {f"{name}-layernorm": {**settings, "network": "layernorm"} for name, settings in methods_of.items()}
    return tuple(Arm(name, settings) for name, settings in (methods_of | with_norm).items())


SPARSITIES = (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


def _sparsities(steps: int) -> tuple[Arm, ...]:
    del steps
    return (
        Arm(DENSE, {"method": "dense"}),
        *(_thinned(method, sparsity) for method in ("rlx2", "rigl", "ss") for sparsity in SPARSITIES),
    )


def _frontier(steps: int) -> tuple[Arm, ...]:
    del steps
    return (Arm(DENSE, {"method": "dense"}), *(_thinned("rlx2", sparsity) for sparsity in search.GRID))


ACTOR_KEEPS = 0.5
"""Share of the actor's links that it keeps where the critics get the others."""


def critic_heavier(config: RunConfig) -> Settings:
    """Sparsities with which the actor has fewer links and the critics more, of the same total size.

    Size is Table 2's: links of online and target networks, of which there are n actors (2 of TD3, 1 of SAC) and 4
    critics. With A and C weights when dense, densities a and c, and a share k of the actor's links kept,

        n A a + 4 C c = n A k a + 4 C c',   so   c' = c + (1 - k) n A a / (4 C)

    Hopper at half the paper's size: A = 69,120, C = 69,376, a = 0.01, c = 0.025, so a' = 0.005 and
    c' = 0.025 + 0.5 * 2 * 69,120 * 0.01 / (4 * 69,376) = 0.02749: 8,318 links, of which the critics had 83 % and now
    have 92 %.
    """
    # Of the dense agent: what its layers hold is all that is asked, and counting a method's own links takes longer.
    dense = dataclasses.replace(config, method=DENSE)
    counted = accounting.account(dense, *_sizes(config.env, config.backend))
    actors = 1 + registry.find(config.agent).passes.actor_target
    actor = 1 - config.actor_sparsity
    moved = (1 - ACTOR_KEEPS) * actors * counted.actor_weights_dense * actor
    critic = 1 - config.critic_sparsity + moved / (4 * counted.critic_weights_dense)
    return {"actor_sparsity": round(1 - ACTOR_KEEPS * actor, 6), "critic_sparsity": round(1 - critic, 6)}


@functools.cache
def _sizes(env: str, backend: str) -> tuple[int, int]:
    task = envs.make(env, backend)
    return task.observation_size, task.action_size


class Factor(NamedTuple):
    """One change of RLx2 that may carry it further."""

    settings: Settings
    """What it sets."""
    fitted: Callable[[RunConfig], Settings] | None = None
    """As of an arm."""


FACTORS: dict[str, Factor] = {
    "sparser": Factor({"method": "sparser"}),
    "critic-norm": Factor({"critic_network": "layernorm"}),
    "5-step": Factor({"n_step": 5}),
    "8-batches": Factor({"score_batches": 8}),
    "critic-heavier": Factor({}, critic_heavier),
    "1-step": Factor({"n_step": 1}),
}
"""From sparse to sparser; layer normalisation in the critics; a longer horizon than RLx2's three steps; grow scores
that are means over several batches; links moved from the actor to the critics. One-step targets were thought of later:
of all arms of `delay` on Hopper-v4 they had the highest return."""

SCREENED = ("sparser", "critic-norm", "5-step", "8-batches", "critic-heavier")
"""Those of them that `beyond` screens."""

KEPT = ("sparser", "critic-norm", "5-step")
"""Those that the screening keeps."""

RECIPE = ("sparser", "critic-norm")
"""Those that `beyond-frontier` searches with: what keeps the dense return at half the paper's size in `beyond` on
Hopper-v4. It searches sparsities that actor and critics share, so `critic-heavier` is not for it."""

COMBINATIONS: tuple[tuple[str, ...], ...] = (SCREENED, KEPT, ("critic-norm", "1-step"), RECIPE)
"""Which of them are tried together: all that are screened; those that the screening keeps; and, thought of after their
long runs, the best single one with one-step targets, and the two that the screening liked most."""


def _with_factors(name: str, names: Sequence[str], settings: Settings) -> Arm:
    """An arm with these factors and settings beside."""
    chosen = [FACTORS[each] for each in names]
    merged = {"method": "rlx2", **{k: v for factor in chosen for k, v in factor.settings.items()}, **settings}
    return Arm(name, merged, fitted=next((factor.fitted for factor in chosen if factor.fitted), None))


def _combined(names: Sequence[str]) -> str:
    """Name of the arm with these factors."""
    return "together" if names == SCREENED else "+".join(names)


def _beyond(steps: int) -> tuple[Arm, ...]:
    del steps
    return (
        Arm(DENSE, {"method": "dense"}),
        Arm("dense-critic-norm", {"method": "dense", **FACTORS["critic-norm"].settings}),
        Arm("rlx2", {"method": "rlx2"}),
        *(_with_factors(name, [name], {}) for name in FACTORS),
        *(_with_factors(_combined(names), names, {}) for names in COMBINATIONS),
    )


def _beyond_frontier(steps: int) -> tuple[Arm, ...]:
    del steps
    return (
        Arm(DENSE, {"method": "dense"}),
        *(
            _with_factors(f"rlx2@{sparsity:g}", RECIPE, {"actor_sparsity": sparsity, "critic_sparsity": sparsity})
            for sparsity in search.GRID
        ),
    )


_FIXED = {"method": "rlx2", "topology": "fixed"}
"""Without a ticket it is the mask that RLx2 begins with: that of the largest initial weights, which lie at random. One
drawn beside them would keep weights half as large as all other arms begin with, and differ in more than its links."""


def _tickets(steps: int) -> tuple[Arm, ...]:
    del steps
    winning = {**_FIXED, "ticket_weights": "initial"}
    release = {**_FIXED, "ticket_weights": "release"}
    return (
        Arm(DENSE, {"method": "dense"}),
        Arm("random", _FIXED),
        Arm("winning", winning, ticket="dynamic"),
        Arm("winning-release", release, ticket="dynamic"),
        Arm("dynamic", {"method": "rlx2"}),
        Arm("clone-random", _FIXED, teacher=DENSE),
        Arm("clone-winning", winning, ticket="clone-dynamic", teacher=DENSE),
        Arm("clone-winning-release", release, ticket="clone-dynamic", teacher=DENSE),
        Arm("clone-dynamic", {"method": "rlx2"}, teacher=DENSE),
    )


def _mask_quality(steps: int) -> tuple[Arm, ...]:
    del steps
    found = {**_FIXED, "ticket_weights": "initial"}
    return (
        Arm(DENSE, {"method": "dense"}),
        Arm("rigl", {"method": "rigl"}),
        Arm("rlx2", {"method": "rlx2"}),
        Arm("mask-random", _FIXED),
        Arm("mask-of-rigl", found, ticket="rigl"),
        Arm("mask-of-rlx2", found, ticket="rlx2"),
    )


def _thinned(method: str, sparsity: float) -> Arm:
    return Arm(f"{method}@{sparsity:g}", {"method": method, "actor_sparsity": sparsity, "critic_sparsity": sparsity})


def _short(transitions: int) -> str:
    return f"{transitions / 1e6:.3g}M" if transitions >= 1e6 else f"{transitions / 1e3:.3g}k"


def _at_half_size(row: str) -> Settings:
    """The sparsities with half the links that the paper has in a row."""
    return {name: round((1 + presets.PAPER_ROWS[row][name]) / 2, 6) for name in SPARSITY_SETTINGS}


STUDIES: dict[str, Study] = {
    "table2": Study(
        title="Table 2: sparse agents beside the dense one",
        question="At the paper's sparsities, which training schemes keep the dense agent's return?",
        rows=(*_TD3_ROWS, *_SAC_ROWS),
        seeds=8,
        arms=_methods,
        focus="rlx2",
        paper=TABLE_2,
    ),
    "table3-topology": Study(
        title="Table 3, left: what topology evolution does",
        question="With RLx2's value learning kept, how much does it matter how links move?",
        rows=_TD3_ROWS,
        seeds=8,
        arms=_topologies,
        focus="rlx2",
        paper=_by_row(
            tiny=(93.3, 74.4, 84.1, 28.7),
            ss=(86.1, 84.2, 83.8, 80.2),
            set=(100.1, 88.8, 89.4, 83.5),
            rlx2=(99.8, 97.0, 98.1, 103.9),
        ),
    ),
    "table3-nstep": Study(
        title="Table 3, right: the length of the TD target",
        question="How many steps should a sparse agent's TD target span?",
        rows=_TD3_ROWS,
        seeds=8,
        arms=_n_steps,
        focus="3-step",
        paper=_by_row(
            **{
                "1_step": (96.5, 77.9, 73.9, 103.9),
                "2_step": (101.7, 91.7, 93.7, 105.1),
                "3_step": (99.8, 97.0, 98.1, 103.9),
                "4_step": (98.8, 84.0, 99.1, 96.7),
                "5_step": (97.0, 87.5, 99.3, 94.5),
            }
        ),
    ),
    "buffer": Study(
        title="The dynamic buffer beside fixed ones",
        question="Does dropping old off-policy data help, and can a fixed capacity do the same?",
        rows=("td3/hopper", "td3/ant"),
        seeds=8,
        arms=_buffers,
        focus="dynamic",
        figure="buffer",
    ),
    "layernorm": Study(
        title="Layer normalisation",
        question="What does layer normalisation do to dense and to sparse agents, each beside its like without?",
        rows=("td3/Hopper-v4",),
        seeds=3,
        arms=_normalised,
        focus="rlx2-layernorm",
    ),
    "sparsity-curve": Study(
        title="Return over sparsity",
        question="How far can actor and critics be thinned, both alike, before the return falls?",
        rows=("td3/hopper", "td3/ant"),
        seeds=8,
        arms=_sparsities,
        focus="rlx2@0.95",
        figure="sparsity",
    ),
    "tickets": Study(
        title="Lottery tickets",
        question=(
            "Does a sparse network that was found by training do well when it is trained anew with its links fixed "
            "(winning ticket), beside one that keeps moving them (dynamic) and one that keeps those it began with "
            "(random), under reinforcement learning and when it only has to imitate the trained dense agent (clone, "
            "whose winning ticket is what the moving clone ended with)?"
        ),
        rows=("td3/ant",),
        seeds=8,
        arms=_tickets,
        focus="dynamic",
    ),
    "mask-quality": Study(
        title="Masks found by RigL and by RLx2",
        question="Trained anew with RLx2's value learning and kept fixed, which method's masks are the better ones?",
        rows=("td3/hopper", "td3/ant"),
        seeds=8,
        arms=_mask_quality,
        focus="mask-of-rlx2",
    ),
    "frontier": Study(
        title="The largest sparsity that keeps the return",
        question="Up to which sparsity of actor and critics, both alike, does RLx2 keep 97 % of the dense return?",
        rows=(*_TD3_ROWS, *_SAC_ROWS),
        seeds=8,
        arms=_frontier,
        focus="rlx2@0.95",
        figure="sparsity",
        search=True,
    ),
    "table2-mujoco": Study(
        title="Table 2 on MuJoCo's tasks",
        question="On the paper's own tasks and with its release's settings, which schemes keep the dense return?",
        rows=tuple(f"{agent}/{task}" for agent in ("td3", "sac") for task in _FIRST_TASKS),
        seeds=5,
        arms=_by_weight,
        focus="rlx2",
        paper=_on_mujoco(TABLE_2),
        settings=MUJOCO,
        published=DENSE_RETURNS,
    ),
    "ant-inputs": Study(
        title="Inputs that are always zero",
        question=(
            "Under MuJoCo 2.0, which the paper used, 84 of Ant's 111 observations were always zero (`Ant-v3` here); "
            "`Ant-v4` leaves them out. At 96 % they give the actor 3,840 links instead of 2,980. A gradient grows no "
            "link at an input that is always zero, so evolution moves the first layer to the 27 others, while a static "
            "mask keeps three quarters of it where nothing comes in. Predicted: from `Ant-v4` to `Ant-v3` RLx2's share "
            "of the dense return rises, and the static mask's falls."
        ),
        rows=("td3/Ant-v3", "td3/Ant-v4"),
        seeds=4,
        arms=_inputs,
        focus="rlx2",
        settings={**MUJOCO, **{name: presets.PAPER_ROWS["td3/Ant-v3"][name] for name in SPARSITY_SETTINGS}},
        published=DENSE_RETURNS,
        contrast=Contrast(("td3/Ant-v3", "td3/Ant-v4"), {"rlx2": 1, "ss": -1}),
    ),
    "delay": Study(
        title="When three-step targets begin",
        question=(
            "Three-step targets begin at once, after a tenth of the run (at a million steps the paper's delay, scaled "
            "with the run), after three tenths (there the paper's 300,000 updates, unscaled), or never: which should "
            "be the default?"
        ),
        rows=("td3/Hopper-v4", "td3/Walker2d-v4", "td3/Ant-v3"),
        seeds=4,
        arms=_delays,
        focus="from-0.3",
        settings=MUJOCO,
        published=DENSE_RETURNS,
    ),
    "beyond": Study(
        title="Beyond the paper: half its size",
        question=(
            "Which changes of RLx2 keep the dense return with half the paper's links? "
            "Screening, a rule written down before any run: TD3 on Hopper-v4 and Walker2d-v4, every arm, the seeds 0 "
            "and 1, 300,000 steps, points in time times 0.3 but for the warm-up of 25,000 (`--total_steps=300000 "
            "--schedule_scale=0.3 --warmup_steps=25000 --seeds=2`). A change goes on if its score relative to RLx2 of "
            "the same size, mean of the two tasks, is above 1. Those that go on are tried together, to a million steps "
            "with four seeds, beside RLx2 of that size and both dense agents; if none does, the best one goes on "
            "alone. The aim is 97 % of dense; what is below is a result, too."
        ),
        rows=("td3/Hopper-v4", "td3/Walker2d-v4", "td3/HalfCheetah-v4", "td3/Ant-v3"),
        seeds=4,
        arms=_beyond,
        focus=_combined(KEPT),
        settings=MUJOCO,
        of_row={row: _at_half_size(row) for row in presets.PAPER_ROWS},
        published=DENSE_RETURNS,
        references=("rlx2", "dense-critic-norm"),
        screening=Screening(300_000, SCREENED, 1.0),
    ),
    "beyond-frontier": Study(
        title="The largest sparsity that keeps the return, with what goes beyond the paper",
        question=(
            "Up to which sparsity of actor and critics, both alike, does RLx2 keep 97 % of the dense return with "
            f"these changes of `beyond`: {', '.join(RECIPE)}?"
        ),
        rows=("td3/Hopper-v4",),
        seeds=5,
        arms=_beyond_frontier,
        focus="rlx2@0.95",
        figure="sparsity",
        search=True,
        settings=MUJOCO,
        published=DENSE_RETURNS,
    ),
}


UNTOLD = frozenset({"agent", "env", "seed"}) | workdirs.HOW
"""Fields that a row names, that differ between seeds, or that say how a run is computed."""

SMOKE = {
    "hidden": (64, 64),
    "batch_size": 16,
    "num_envs": 4,
    "total_steps": 1200,
    "warmup_steps": 200,
    "episode_length": 10,
    "eval_every": 400,
    "eval_episodes": 4,
    "reset_pool": 8,
    "n_max": 5,
}
"""What `--smoke` sets, on the row of `SMOKE_ROW`: a minute for a study, most of it compilation of one program."""

SMOKE_ROW = "td3/probe/action"


def runs(
    study: Study,
    rows: Sequence[str],
    seeds: Sequence[int],
    settings: Settings,
    arms: Sequence[str] = (),
    reading: Settings | None = None,
) -> list[Run]:
    """All runs of a study.

    Args:
      study: one of `STUDIES`.
      rows: `agent/env` each, with the sparsities of Table 2 where it has the row.
      seeds: of each arm of each row.
      settings: what all runs have, over the study's and the row's own; the length of the paper's runs if none of them
        names `total_steps`.
      arms: these alone; empty for all.
      reading: further settings of all runs, which give way to those of an arm (see `presets.READINGS`).

    Raises:
      ConfigError: a row, an arm or a setting that cannot be.
    """
    if study.search and arms:
        raise ConfigError(f"arms={','.join(arms)}: this study searches, and chooses its arms itself; leave it out.")
    found = []
    for row in rows:
        agent, _, env = row.partition("/")
        if not env:
            raise ConfigError(f"rows={row}: name an agent and a task, such as td3/hopper.")
        values = {
            **presets.PRESETS.get(row, {"agent": agent, "env": env, "total_steps": PAPER_STEPS}),
            **study.settings,
            **study.of_row.get(row, {}),
            **(reading or {}),
            **settings,
        }
        base = dataclasses.replace(Config(), **values)
        steps = configured(base, Arm(DENSE, {"method": DENSE})).total_steps
        offered = study.arms(steps)
        conditions = {**_conditions(base, offered), "total_steps": steps}
        if unknown := sorted(set(arms) - {arm.name for arm in offered}):
            raise ConfigError(f"unknown arms {unknown}; valid: {', '.join(arm.name for arm in offered)}.")
        for arm in offered:
            if clash := sorted(set(arm.settings) & set(settings)):
                raise ConfigError(f"--{clash[0]} is what this study varies; leave it out.")
            if arms and arm.name not in arms:
                continue
            if arms and (lacking := [name for name in (arm.ticket, arm.teacher) if name and name not in arms]):
                raise ConfigError(f"arm {arm.name} begins with what {lacking[0]} leaves; name both.")
            configs = [configured(dataclasses.replace(base, seed=seed), arm) for seed in seeds]
            found += [Run(row, arm.name, config, arm.ticket, arm.teacher, conditions) for config in configs]
    return found


def configured(base: Config, arm: Arm) -> RunConfig:
    """The configuration of an arm's run.

    Raises:
      ConfigError: one that cannot be.
    """
    config = dataclasses.replace(base, **arm.settings)
    resolved = resolve(config)
    if config.eval_every is None and resolved.eval_every > EVAL_EVERY:
        config = dataclasses.replace(config, eval_every=EVAL_EVERY)
        resolved = resolve(config)
    return resolved if arm.fitted is None else resolve(dataclasses.replace(config, **arm.fitted(resolved)))


def check(runs: Sequence[Run]) -> None:
    """Refuse runs of a task, or of layers, that cannot be, before any other is trained; makes every task once.

    Raises:
      ConfigError: one sentence on the first of them.
    """
    for run in runs:
        task = envs.make(run.config.env, run.config.backend)
        structure(run.config, task.observation_size, task.action_size)


def _conditions(base: Config, arms: Sequence[Arm]) -> dict[str, Any]:
    """The settings of a configuration without which some arm's run would be another, or could not be."""

    def resolved(config: Config) -> list[RunConfig] | None:
        try:
            return [configured(config, arm) for arm in arms]
        except ConfigError:
            return None

    defaults, runs = Config(), resolved(base)
    values, plain = base.to_dict(), defaults.to_dict()
    named = [name for name, value in values.items() if value != plain[name] and name not in UNTOLD]
    without = lambda name: dataclasses.replace(base, **{name: getattr(defaults, name)})
    return {name: values[name] for name in named if resolved(without(name)) != runs}
