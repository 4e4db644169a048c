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
| `beyond-frontier` | ultimate compression ratio | `frontier` with the two changes that keep the return in `beyond` |

To add one, add it here, with its arms in `arms`; runs, records and reports follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paper import arms, factors, published
from paper.plan import EVAL_EVERY
from paper.study import SPARSITY_SETTINGS, Contrast, Screening, Settings, Study
from rlx2_jax.config import presets

_TD3_ROWS = ("td3/hopper", "td3/walker2d", "td3/ant", "td3/halfcheetah")
_SAC_ROWS = ("sac/hopper", "sac/walker2d", "sac/halfcheetah", "sac/ant")

_FIRST_TASKS = ("Hopper-v4", "Ant-v3", "HalfCheetah-v4", "Walker2d-v4")
"""The paper's own tasks in the order of what they are expected to tell."""

MUJOCO: Settings = {
    "total_steps": 1_000_000,
    "schedule_scale": 1.0,
    "kernel_init": "release",
    "num_envs": 2,
    "eval_every": EVAL_EVERY,
    "score_evaluations": 30,
}
"""Protocol of the studies on MuJoCo's tasks: the paper's points in time, unscaled (warm-up 25,000 steps, three-step
targets after 300,000 updates, events every 10,000), the release's initial weights, and a million steps, as most have
them since. The rest is read as `rlx2` does, so SAC collects with samples. The release steps one environment. TD3
updates its actor every second step, so an iteration here holds two: of two environments, or (`--num_envs=1`) of one."""


def _on_mujoco(by_row: Mapping[str, Any]) -> dict[str, Any]:
    """The same by rows on the paper's own tasks."""
    return {presets.on_mujoco(row): values for row, values in by_row.items()}


def _at_half_size(row: str) -> Settings:
    """The sparsities with half the links that the paper has in a row."""
    return {name: round((1 + presets.PAPER_ROWS[row][name]) / 2, 6) for name in SPARSITY_SETTINGS}


STUDIES: dict[str, Study] = {
    "table2": Study(
        title="Table 2: sparse agents beside the dense one",
        question="At the paper's sparsities, which training schemes keep the dense agent's return?",
        rows=(*_TD3_ROWS, *_SAC_ROWS),
        seeds=8,
        arms=arms.by_method,
        focus="rlx2",
        paper=published.TABLE_2,
    ),
    "table3-topology": Study(
        title="Table 3, left: what topology evolution does",
        question="With RLx2's value learning kept, how much does it matter how links move?",
        rows=_TD3_ROWS,
        seeds=8,
        arms=arms.topologies,
        focus="rlx2",
        paper=published.TABLE_3_TOPOLOGY,
    ),
    "table3-nstep": Study(
        title="Table 3, right: the length of the TD target",
        question="How many steps should a sparse agent's TD target span?",
        rows=_TD3_ROWS,
        seeds=8,
        arms=arms.n_steps,
        focus="3-step",
        paper=published.TABLE_3_NSTEP,
    ),
    "buffer": Study(
        title="The dynamic buffer beside fixed ones",
        question="Does dropping old off-policy data help, and can a fixed capacity do the same?",
        rows=("td3/hopper", "td3/ant"),
        seeds=8,
        arms=arms.buffers,
        focus="dynamic",
        figure="buffer",
    ),
    "layernorm": Study(
        title="Layer normalisation",
        question="What does layer normalisation do to dense and to sparse agents, each beside its like without?",
        rows=("td3/Hopper-v4",),
        seeds=3,
        arms=arms.normalised,
        focus="rlx2-layernorm",
    ),
    "sparsity-curve": Study(
        title="Return over sparsity",
        question="How far can actor and critics be thinned, both alike, before the return falls?",
        rows=("td3/hopper", "td3/ant"),
        seeds=8,
        arms=arms.sparsities,
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
        arms=arms.tickets,
        focus="dynamic",
    ),
    "mask-quality": Study(
        title="Masks found by RigL and by RLx2",
        question="Trained anew with RLx2's value learning and kept fixed, which method's masks are the better ones?",
        rows=("td3/hopper", "td3/ant"),
        seeds=8,
        arms=arms.mask_quality,
        focus="mask-of-rlx2",
    ),
    "frontier": Study(
        title="The largest sparsity that keeps the return",
        question="Up to which sparsity of actor and critics, both alike, does RLx2 keep 97 % of the dense return?",
        rows=(*_TD3_ROWS, *_SAC_ROWS),
        seeds=8,
        arms=arms.frontier,
        focus="rlx2@0.95",
        figure="sparsity",
        search=True,
    ),
    "table2-mujoco": Study(
        title="Table 2 on MuJoCo's tasks",
        question="On the paper's own tasks and with its schedule, which schemes keep the dense return?",
        rows=tuple(f"{agent}/{task}" for agent in ("td3", "sac") for task in _FIRST_TASKS),
        seeds=5,
        arms=arms.by_weight,
        focus="rlx2",
        paper=_on_mujoco(published.TABLE_2),
        settings=MUJOCO,
        published=published.DENSE_RETURNS,
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
        arms=arms.inputs,
        focus="rlx2",
        settings={**MUJOCO, **{name: presets.PAPER_ROWS["td3/Ant-v3"][name] for name in SPARSITY_SETTINGS}},
        published=published.DENSE_RETURNS,
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
        arms=arms.delays,
        focus="from-0.3",
        settings=MUJOCO,
        published=published.DENSE_RETURNS,
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
            "alone. The aim is 97 % of dense; what is below is a result, too. Of the arms, the dense ones were left "
            "out of the short runs, as no change is measured by them there, and so were those thought of later."
        ),
        rows=("td3/Hopper-v4", "td3/Walker2d-v4", "td3/HalfCheetah-v4", "td3/Ant-v3"),
        seeds=4,
        arms=arms.beyond,
        focus=factors.combined(factors.KEPT),
        settings=MUJOCO,
        of_row={row: _at_half_size(row) for row in presets.PAPER_ROWS},
        published=published.DENSE_RETURNS,
        references=("rlx2", "dense-critic-norm"),
        screening=Screening(300_000, factors.SCREENED, 1.0),
    ),
    "beyond-frontier": Study(
        title="The largest sparsity that keeps the return, with what goes beyond the paper",
        question=(
            "Up to which sparsity of actor and critics, both alike, does RLx2 keep 97 % of the dense return with "
            f"these changes of `beyond`: {', '.join(factors.RECIPE)}?"
        ),
        rows=("td3/Hopper-v4",),
        seeds=5,
        arms=arms.beyond_frontier,
        focus="recipe@0.95",
        figure="sparsity",
        search=True,
        settings=MUJOCO,
        published=published.DENSE_RETURNS,
    ),
}
