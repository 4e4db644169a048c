"""What others have published: the paper's tables, and returns of dense agents, which our own stand beside.

Those dense agents were trained on other versions of the tasks, under other versions of MuJoCo, with other code: a
dense agent of ours that is far from all of them makes no good measure, and one that is near to them is no proof of
anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

TABLE_2: Mapping[str, Mapping[str, float]] = {
    "td3/halfcheetah": {"tiny": 86.3, "ss": 77.1, "set": 92.6, "rigl": 90.8, "rlx2": 99.8},
    "td3/hopper": {"tiny": 64.5, "ss": 67.7, "set": 66.5, "rigl": 90.6, "rlx2": 97.0},
    "td3/walker2d": {"tiny": 60.8, "ss": 42.9, "set": 39.3, "rigl": 35.7, "rlx2": 98.1},
    "td3/ant": {"tiny": 16.5, "ss": 49.6, "set": 62.5, "rigl": 68.5, "rlx2": 103.9},
    "sac/halfcheetah": {"tiny": 95.0, "ss": 75.4, "set": 94.8, "rigl": 89.8, "rlx2": 102.2},
    "sac/hopper": {"tiny": 89.1, "ss": 81.6, "set": 103.9, "rigl": 110.0, "rlx2": 109.7},
    "sac/walker2d": {"tiny": 73.8, "ss": 83.4, "set": 95.8, "rigl": 81.9, "rlx2": 103.2},
    "sac/ant": {"tiny": 49.6, "ss": 49.3, "set": 79.8, "rigl": 90.9, "rlx2": 105.6},
}
"""Returns in percent of the dense agent's, by row and arm."""


def _by_row(**columns: tuple[float, ...]) -> dict[str, dict[str, float]]:
    """Columns of Table 3, by arm, whose rows are HalfCheetah, Hopper, Walker2d, Ant."""
    rows = ("td3/halfcheetah", "td3/hopper", "td3/walker2d", "td3/ant")
    return {row: {arm: column[i] for arm, column in columns.items()} for i, row in enumerate(rows)}


TABLE_3_TOPOLOGY: Mapping[str, Mapping[str, float]] = _by_row(
    tiny=(93.3, 74.4, 84.1, 28.7),
    ss=(86.1, 84.2, 83.8, 80.2),
    set=(100.1, 88.8, 89.4, 83.5),
    rlx2=(99.8, 97.0, 98.1, 103.9),
)

TABLE_3_NSTEP: Mapping[str, Mapping[str, float]] = _by_row(
    **{
        "1-step": (96.5, 77.9, 73.9, 103.9),
        "2-step": (101.7, 91.7, 93.7, 105.1),
        "3-step": (99.8, 97.0, 98.1, 103.9),
        "4-step": (98.8, 84.0, 99.1, 96.7),
        "5-step": (97.0, 87.5, 99.3, 94.5),
    }
)


class Published(NamedTuple):
    """One return, and how it came about."""

    whose: str
    """Who published it."""
    value: float
    """The mean over seeds."""
    spread: float | None
    """Standard deviation over seeds; None where none is told."""
    protocol: str
    """What it is a mean of, on which task, after how many steps."""


_TD3 = "Fujimoto et al., 2018, the authors' learning curves"
_TD3_PROTOCOL = "10 seeds, 1 million steps, version 1, mean of the last 30 of 201 evaluations, 10 episodes each"
_CLEANRL = "CleanRL's documentation"
_CLEANRL_PROTOCOL = "3 seeds, 1 million steps, version 2, returns of training episodes, with exploration"
_TIANSHOU = "Tianshou's MuJoCo benchmark"
_TIANSHOU_PROTOCOL = "10 seeds, 1 million steps, version 3, the best evaluation of their mean, 10 episodes each"
_SAC = "Haarnoja et al., 2018b"
_SAC_PROTOCOL = "5 seeds, 1 million steps, version 2, read off a figure, so about; without exploration"

DENSE_RETURNS: Mapping[str, tuple[Published, ...]] = {
    "td3/HalfCheetah-v4": (
        Published(_TD3, 9432, 857, _TD3_PROTOCOL),
        Published(_TIANSHOU, 10_201.2, 772.8, _TIANSHOU_PROTOCOL),
    ),
    "td3/Hopper-v4": (
        Published(_TD3, 3299, 185, _TD3_PROTOCOL),
        Published(_TIANSHOU, 3472.2, 116.8, _TIANSHOU_PROTOCOL),
    ),
    "td3/Walker2d-v4": (
        Published(_TD3, 4382, 583, _TD3_PROTOCOL),
        Published(_TIANSHOU, 3982.4, 274.5, _TIANSHOU_PROTOCOL),
    ),
    "td3/Ant-v3": (
        Published(_TD3, 4125, 1003, _TD3_PROTOCOL),
        Published(_TIANSHOU, 5116.4, 799.9, _TIANSHOU_PROTOCOL),
    ),
    "sac/HalfCheetah-v4": (
        Published(_CLEANRL, 9634.89, 1423.73, _CLEANRL_PROTOCOL),
        Published(_TIANSHOU, 12_138.8, 1049.3, _TIANSHOU_PROTOCOL),
        Published(_SAC, 11_250, None, _SAC_PROTOCOL),
    ),
    "sac/Walker2d-v4": (
        Published(_CLEANRL, 3591.45, 911.33, _CLEANRL_PROTOCOL),
        Published(_TIANSHOU, 5007.0, 251.5, _TIANSHOU_PROTOCOL),
        Published(_SAC, 4800, None, _SAC_PROTOCOL),
    ),
    "sac/Hopper-v4": (
        Published(_CLEANRL, 2310.46, 342.82, _CLEANRL_PROTOCOL),
        Published(_TIANSHOU, 3542.2, 51.5, _TIANSHOU_PROTOCOL),
        Published(_SAC, 3250, None, _SAC_PROTOCOL),
    ),
    "sac/Ant-v3": (Published(_TIANSHOU, 5850.2, 475.7, _TIANSHOU_PROTOCOL),),
}
"""By row of a study on MuJoCo's tasks."""
