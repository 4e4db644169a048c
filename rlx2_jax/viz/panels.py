"""Pictures of one run: each a function of what the run has left, to a figure and its words, or to why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlx2_jax.config import RunConfig
from rlx2_jax.policies import Policy
from rlx2_jax.policies.history import NETWORKS, History
from rlx2_jax.viz import comparison, masks
from rlx2_jax.viz.curves import Rows, column, tidy

LOOKS = (*zip(comparison.COLORS, comparison.STYLES, strict=False),)
"""Colour and style of each curve of a picture, so that no colour has to be told from another."""

SIZE = 4.3, 2.5
"""Inches of a picture, of which two or three stand side by side."""

MARGINS = 0.82, 0.45, 0.22, 0.08
"""Inches left of, below, right of and above the axes."""

MARKED = 40
"""Most points of a curve that are marked."""


class RecordedRun(NamedTuple):
    """What the directory of a run holds."""

    name: str
    """Of the directory."""
    config: RunConfig
    """Its settings."""
    rows: Rows
    """Its evaluations."""
    summary: Mapping[str, Any] | None
    """As in summary.json; None of a run that has not ended."""
    policy: Policy | None
    """That of the last evaluation."""
    masks: History | None
    """Over its training."""
    lacking: Mapping[str, str]
    """Why something of this is None or empty, in a sentence, by its name here."""

    @property
    def sizes(self) -> tuple[int, int] | None:
        """Entries of an observation and of an action, if a file tells them."""
        if self.policy is not None:
            return self.policy.sizes
        if self.masks is not None:
            return self.masks.observation_size, len(self.masks.labels.action_names)
        return None


class Drawn(NamedTuple):
    """A picture, and what it shows in words."""

    figure: Figure
    """Made in `inline.look`."""
    told: str
    """Where its curves begin and end, or what it shows."""


class Panel(NamedTuple):
    """A picture of a run with what stands around it."""

    name: str
    """Of one word."""
    title: str
    """What is shown, and its unit."""
    about: str
    """What is to be seen in it."""
    draw: Callable[[RecordedRun], Drawn | str]
    """The picture, or why there is none."""
    columns: tuple[str, ...] = ()
    """Of the evaluations, if it is made of these."""
    place: str = ""
    """`broad` takes the page's width, and so does `wide`, but `narrow` is in its place on a small screen; else it is
    beside others."""


def _curve(
    name: str,
    title: str,
    about: str,
    columns: Mapping[str, str],
    *,
    spread: str = "",
    place: str = "",
) -> Panel:
    """A panel of columns over the steps.

    Args:
      name: as in `Panel`, with the following.
      title: what is shown, a comma, and its unit.
      about: a sentence.
      columns: what each is called, by its name in metrics.jsonl.
      spread: column of the standard deviation about the first one.
      place: as in `Panel`.
    """

    def draw(run: RecordedRun) -> Drawn | str:
        steps = column(run.rows, "env_steps")
        values = {label: column(run.rows, key) for key, label in columns.items()}
        values = {label: series for label, series in values.items() if np.isfinite(series).any()}
        if not values:
            return "no evaluation has measured it"
        figure, axis = _empty(wide=place == "wide")
        if spread:
            first, deviation = next(iter(values.values())), column(run.rows, spread)
            axis.fill_between(steps, first - deviation, first + deviation, color=LOOKS[0][0], alpha=0.2, lw=0)
        for (label, series), (color, style) in zip(values.items(), LOOKS, strict=False):
            marker = {"marker": "o", "ms": 3} if len(steps) <= MARKED else {}
            axis.plot(steps, series, color=color, ls=style, lw=1.6, label=label, **marker)
        _finish(axis, title.rpartition(", ")[2], legend=len(values) > 1)
        return Drawn(figure, _told(title, steps, values))

    return Panel(name, title, about, draw, tuple(columns), place)


def _empty(*, wide: bool = False) -> tuple[Figure, Any]:
    """A figure and its axes, with the same margins in inches whatever is drawn, so that pictures side by side agree."""
    width, height = (2.4 * SIZE[0], 1.2 * SIZE[1]) if wide else SIZE
    left, bottom, right, top = MARGINS
    figure = Figure(figsize=(width, height))
    place = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    return figure, figure.add_axes(place)


def _finish(axis: Any, unit: str, *, legend: bool) -> None:
    """The look of all pictures over steps."""
    tidy(axis)
    axis.set(xlabel="environment steps", ylabel=unit)
    axis.yaxis.set_major_locator(MaxNLocator(5))
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter(_spelled)
    axis.margins(y=0.12)
    if not any(np.nan_to_num(line.get_ydata()).any() for line in axis.lines):
        axis.set_ylim(0, 1)  # All is zero: Matplotlib would show hundredths of it.
    if min(np.nanmin(line.get_ydata()) for line in axis.lines) >= 0:
        axis.set_ylim(bottom=max(0.0, axis.get_ylim()[0]))
    if legend:
        axis.legend(frameon=False, fontsize=8, loc="best")


def _spelled(value: float, place: int | None = None) -> str:
    """A number at an axis."""
    del place
    for unit, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.4g}{sign}"
    return f"{value:.4g}"


def _told(title: str, steps: np.ndarray, values: Mapping[str, np.ndarray]) -> str:
    """Curves in words: where each begins and ends, and between what it lies."""
    parts = []
    for label, series in values.items():
        known = np.isfinite(series)
        at, y = steps[known], series[known]
        parts.append(
            f"{label} {y[0]:,.4g} at step {at[0]:,.0f} and {y[-1]:,.4g} at step {at[-1]:,.0f}, "
            f"from {y.min():,.4g} to {y.max():,.4g}"
        )
    return f"{title}: {'; '.join(parts)}."


def _both(what: str) -> dict[str, str]:
    return {f"{network}_{what}": f"{network}{'s' * (network == 'critic')}" for network in NETWORKS}


CURVES: Sequence[Panel] = (
    *(
        _curve(
            f"return-{place}", "Return, reward per episode",
            "Noise-free policy from fresh initial states; the band is a standard deviation over the episodes of an "
            "evaluation. Training episodes have exploration noise.",
            {"return_mean": "evaluation", "train_return": "training"}, spread="return_std", place=place,
        )
        for place in ("wide", "narrow")
    ),
    _curve(
        "value", "Mean Q, reward", "On training batches, since the evaluation before.", {"q_mean": "Q"}
    ),
    _curve(
        "bias", "Error of the values, reward",
        "Q at the first states of evaluation episodes, minus the discounted return that followed; above zero is "
        "overestimation.",
        {"value_bias": "Q minus return"},
    ),
    _curve("loss", "Loss of the critics, squared reward", "On training batches, since the evaluation before.",
           {"critic_loss": "loss"}),
    _curve("entropy", "Entropy, nats", "Of the policy that explores.", {"entropy": "entropy"}),
    _curve("temperature", "Temperature, reward per nat", "The weight of the entropy in the objective.",
           {"alpha": "temperature"}),
    _curve("dormant", "Dormant units, share of hidden units",
           "Units next to silent beside the others of their layer, on replayed observations.", _both("dormant")),
    _curve("dead", "Dead units, share of hidden units", "Units with no link in, or none out.", _both("dead")),
    _curve("rank", "Effective rank of the critics, directions",
           "How many directions the last hidden layer uses.", {"critic_rank": "rank"}),
)  # fmt: skip
"""How training went."""

WIRING: Sequence[Panel] = (
    _curve("moved", "Links moved, links", "By topology events since the evaluation before, of all networks.",
           {"links_grown": "links"}),
    _curve("fan", "Inequality of fan-in, ratio",
           "Standard deviation of the number of links into a unit over its mean, averaged over layers.",
           _both("fan_in_cv")),
    _curve("noise", "Signal in the grow scores, ratio",
           "Squared mean over variance of the gradient that topology events choose new links by; 0 is noise alone.",
           _both("gradient_snr")),
)  # fmt: skip
"""How links moved, and where they are."""


def _of_masks(name: str, title: str, about: str, draw: Callable[[RecordedRun, History], Figure], shows: str) -> Panel:
    """A panel of what masks were over training; `shows` is what it shows in words."""

    def drawn(run: RecordedRun) -> Drawn | str:
        if run.masks is None:
            return run.lacking["masks"]
        steps = run.masks.steps
        return Drawn(draw(run, run.masks), f"{shows}, in {len(steps)} snapshots from step 0 to {steps[-1]:,}.")

    return Panel(name, title, about, drawn, place="broad")


def _buffer(run: RecordedRun) -> Drawn | str:
    if not run.rows:
        return run.lacking["rows"]
    steps = column(run.rows, "env_steps")
    names = {"transitions kept": "replay_size", "policy distance": "policy_distance"}
    values = {label: column(run.rows, name) for label, name in names.items()}
    values = {label: series for label, series in values.items() if np.isfinite(series).any()}
    return Drawn(masks.draw_buffer(run.rows, run.config.to_dict()), _told("Replay", steps, values))


MASKS: Sequence[Panel] = (
    _of_masks("strip-actor", "The actor's links over training",
              "A cell is a weight; its colour is what became of the link.",
              lambda run, history: masks.draw_strip(history), "Links of each matrix of the actor"),
    _of_masks("inputs", "What reads each input",
              "Inputs by name, those with most links first.",
              lambda run, history: masks.draw_inputs(history, run.policy), "Links from each input, and their weights"),
    _of_masks("layers", "Links by layer",
              "How many there are, and how many of those at the start are still there.",
              lambda run, history: masks.draw_layers(history), "Links of each layer of actor and critic"),
    _of_masks("strip-critic", "A critic's links over training",
              "As of the actor; the actions are inputs, too.",
              lambda run, history: masks.draw_strip(history, "critic"), "Links of each matrix of a critic"),
    Panel("buffer", "Replay buffer and policy distance",
          "Where the buffer is dynamic, old data goes when the policy is too far from it.", _buffer, place="broad"),
)  # fmt: skip
"""What the masks were, and what was learned from."""

SPEED: Sequence[Panel] = (
    _curve("speed", "Speed, environment steps per second",
           "Of training, since the evaluation before; evaluations are not counted.", {"steps_per_second": "speed"}),
)  # fmt: skip
"""How fast it went."""
