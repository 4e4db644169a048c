"""Returns of dense agents that others have published, which our own dense agents stand beside.

What they were trained on are other versions of the tasks, under other versions of MuJoCo, with other code: a dense
agent that is far from all of them makes no good measure, and one that is near to them is no proof of anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


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
