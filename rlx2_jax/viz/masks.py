"""Masks as pictures: which links a run had over its training, what its inputs are worth, how its layers are filled.

A matrix is drawn as an image with a cell per weight: white where there is no link, else coloured by what became of the
link since an earlier moment. Rows of a first layer are the entries of the observation, in their order and by their
names; units are sorted by the number of their links in the last snapshot, so that what is much used stands together.
Of twin critics the first is shown. Colours are told apart by those who do not see all of them (Okabe and Ito, 2008).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Patch

from rlx2_jax.envs.labels import Labels
from rlx2_jax.errors import ConfigError
from rlx2_jax.export import compaction, tracing
from rlx2_jax.networks import masking
from rlx2_jax.policies import Policy
from rlx2_jax.policies.history import NETWORKS, History
from rlx2_jax.viz.comparison import COLORS, STYLES
from rlx2_jax.viz.curves import Rows, column, headline, plain_text, tidy

PALETTE = {"absent": "#ffffff", "dropped": "#c9c9c9", "kept": "#0072B2", "new": "#D55E00"}
"""Colour of a weight, by what became of its link."""

MOMENTS = 3
"""Pictures of one layer in a strip, at most."""

STACKED = 30
"""Rows up to which the pictures of a strip stand below each other, each with the names of all rows."""

NAMED = 40
"""Inputs in a picture that are named, at most."""

FEWER = 18
"""Those in a low one."""

CELLS = 600
"""Pixels of a matrix's image along each side, at least."""

FILMS = (".gif", ".mp4")
"""Endings of the files that an animation can be written to."""

FPS = 5.0
"""Snapshots per second of an animation."""


DISTANCES = {"half_mse": "half mean squared\ndifference of actions", "l2": "mean distance\nof actions"}
"""What the policy distance is, by `Config.distance`."""


class _Layer(NamedTuple):
    """A matrix of a network over its history, as it is drawn."""

    title: str
    masks: np.ndarray
    """`[snapshots, rows, columns]`, units sorted; a last layer is turned, so that outputs are its rows."""
    rows: Sequence[str]
    """Names of the rows; none where they are units."""
    axes: tuple[str, str]
    """What columns and rows are."""


@plain_text
def draw_strip(history: History, network: str = "actor") -> Figure:
    """The first layer that is sparse at a few times of training, and below it the other layers at the end.

    Args:
      history: of the run.
      network: `actor` or `critic`.
    """
    layers = _layers(history, network)
    first = next((layer for layer in layers if not layer.masks.all()), layers[0])
    others = [layer for layer in layers if layer is not first]
    shown = _moments(history)
    rows = first.masks.shape[1]
    stacked = rows <= STACKED
    tall = 0.7 + len(shown) * (0.5 + 0.1 * rows) if stacked else min(max(3.2, 2.0 + 0.04 * len(first.rows)), 10.0)
    wide = max(8.0, 2.3 * len(others))
    figure = Figure(figsize=(wide, tall + 3.3), layout="constrained")
    above, below = _halves(figure, tall, 2.8)
    axes = above.subplots(*((len(shown), 1) if stacked else (1, len(shown))), squeeze=False, sharex=True).ravel()
    for k, (axis, now) in enumerate(zip(axes, shown, strict=True)):
        before = shown[max(k - 1, 0)]
        _show(axis, first, before, now, NAMED)
        told = f"{_unit(history)} {history.steps[now]:,}: {_links(first, before, now)}"
        axis.set_title(told if stacked else re.sub("(?<=[:,]) ", "\n", told), fontsize="small")
        axis.tick_params(labelleft=stacked or k == 0)
        if k == len(shown) - 1 or not stacked:
            axis.set_xlabel(first.axes[0] if stacked or not first.rows else "units", fontsize="small")
        if k == 0 and not first.rows:
            axis.set_ylabel(first.axes[1], fontsize="small")
    for axis, layer in zip(below.subplots(1, len(others), squeeze=False)[0], others, strict=True):
        _show(axis, layer, 0, shown[-1], FEWER)
        axis.set_title(f"{layer.title}\n{_links(layer, 0, shown[-1])}", fontsize="small")
        axis.set_xlabel(layer.axes[0], fontsize="small")
        axis.set_ylabel(layer.axes[1], fontsize="small")
    several = len(history.steps) > 1
    above.suptitle(f"{network}, {first.title}{', each beside the one before' * several}", fontsize="medium")
    unit = _unit(history)
    end = f"the other layers at {unit} {history.steps[-1]:,}{f', beside {unit} 0' * several}"
    below.suptitle(end, fontsize="medium")
    figure.suptitle(headline(history.about["config"]))
    _legend(figure)
    return figure


@plain_text
def draw_inputs(history: History, policy: Policy | None = None) -> Figure:
    """What reads each input, by name: links of actor and critic at the end, the actor's weights, links over training.

    Args:
      history: of the run.
      policy: of the same run; with it, its weights are summed, and observations that no action depends on are told.
    """
    labels, inputs = history.labels, history.observation_size
    actor, critic = (_per_input(history, name) for name in NETWORKS)
    order = np.argsort(-actor[-1], kind="stable")[:NAMED]
    unread = () if policy is None else _unread(policy)
    names = [labels.observation_names[i] + " (unread)" * (i in unread) for i in order]
    bars = {"links of the actor": actor[-1, order], "links of a critic": critic[-1, order]}
    if policy is not None:
        weights = masking.kernels(policy.params)[history.order("actor")[_reader(history, "actor")]]
        bars["sum of |w|, actor"] = np.abs(np.asarray(weights)).sum(1)[order]
    actions = critic[-1, inputs:][:NAMED]
    several = len(history.steps) > 1
    figure = Figure(figsize=(10.5, 2.6 + 0.17 * (len(order) + len(actions))), layout="constrained")
    grid = figure.add_gridspec(2, len(bars) + several, height_ratios=[len(order) + 1, len(actions) + 1])
    for k, (title, values) in enumerate(bars.items()):
        _bars(figure.add_subplot(grid[0, k]), values, names if k == 0 else (), COLORS[k], title)
    if several:
        _draw_over_training(figure, figure.add_subplot(grid[0, len(bars)]), history, actor[:, order])
    axis = figure.add_subplot(grid[1, :])
    _bars(axis, actions, labels.action_names[:NAMED], COLORS[1], "links of a critic from actions")
    told = f"{len(order)} of {inputs} observations, those with most links first; {(actor[-1] == 0).sum()} have none"
    figure.suptitle(f"{headline(history.about['config'])}\n{told}", fontsize="medium")
    return figure


@plain_text
def draw_layers(history: History) -> Figure:
    """Links of each layer over training, and how many of those at the start are still there; a row per network.

    Of masks that never changed there is one snapshot; their lines have no steps.
    """
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(len(NETWORKS), 2, sharex=True)
    moved = len(history.steps) > 1
    steps = np.asarray(history.steps if moved else (0, 1))
    for network, (links, first) in zip(NETWORKS, grid, strict=True):
        for k, layer in enumerate(_layers(history, network)):
            # One line may lie on another, which is seen between its dashes.
            look = {"color": COLORS[k % len(COLORS)], "ls": STYLES[k % len(STYLES)], "marker": "o" if moved else ""}
            count = layer.masks.sum((1, 2))
            kept = (layer.masks & layer.masks[0]).sum((1, 2))
            if not moved:
                count, kept = count.repeat(2), kept.repeat(2)
            share = f"{count[-1]:,} of {layer.masks[0].size:,} ({100 * count[-1] / layer.masks[0].size:.3g} %)"
            links.plot(steps, count, ms=3, **look)
            first.plot(steps, 100 * kept / np.maximum(count[0], 1), ms=3, label=f"layer {k + 1}: {share}", **look)
        links.set(title=f"links of the {network}", ylabel="links", ylim=(0, None))
        links.yaxis.set_major_formatter("{x:,.0f}")
        first.set(title=f"links of the {network} as at the start", ylabel="%", ylim=(0, 105))
        first.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize="small", title="at the end")
        for axis in (links, first):
            tidy(axis)
            axis.locator_params(axis="x", nbins=6)
    for axis in grid[-1]:
        axis.set_xlabel(_plural(history) if moved else f"no link has moved since {_unit(history)} 0")
        if not moved:
            axis.set_xticks([])
    figure.suptitle(headline(history.about["config"]))
    return figure


@plain_text
def draw_buffer(rows: Rows, config: Mapping[str, Any]) -> Figure:
    """Transitions kept, and the policy distance that they are dropped by, over training.

    Args:
      rows: lines of a run's `metrics.jsonl`.
      config: of the run, as in `config.json`.
    """
    steps, distance = column(rows, "env_steps"), column(rows, "policy_distance")
    measured = bool(np.isfinite(distance).any())
    figure = Figure(figsize=(8, 3.2 + 2.4 * measured), layout="constrained")
    size, *below = figure.subplots(1 + measured, 1, sharex=True, squeeze=False)[:, 0]
    kept, most, fewest = column(rows, "replay_size"), config.get("buffer_max"), config.get("buffer_min")
    size.plot(steps, kept, color=COLORS[0], marker="o", ms=3, label="kept")
    # Far above all that was kept, the line would only press it down.
    if most is not None and most < 2 * np.nanmax(kept, initial=0):
        size.axhline(most, color=COLORS[6], lw=1, ls="--", label=f"most: {most:,}")
    if fewest is not None:
        size.axhline(fewest, color=COLORS[6], lw=1, ls=":", label=f"fewest: {fewest:,}")
    size.set(title="replay buffer" + ("" if most is None else f", at most {most:,}"), ylabel="transitions")
    for axis in below:
        axis.plot(steps, distance, color=COLORS[1], marker="o", ms=3, label="at the last check")
        threshold = config.get("distance_threshold")
        if config.get("dynamic_buffer") and threshold is not None:
            label = f"threshold {threshold:g}: above it the oldest are dropped"
            axis.axhline(threshold, color=COLORS[6], lw=1, ls="--", label=label)
        axis.set(
            title="policy distance of the oldest transitions", ylabel=DISTANCES.get(config.get("distance", ""), "")
        )
    for axis in (size, *below):
        axis.set_ylim(0, 1.4 * axis.get_ylim()[1])  # Room for the legend.
        axis.legend(loc="upper left", frameon=False, fontsize="small", ncols=3)
        tidy(axis)
    (size, *below)[-1].set_xlabel("environment steps")
    figure.suptitle(headline(config))
    return figure


@plain_text
def animate(history: History, network: str = "actor") -> Iterator[np.ndarray]:
    """Pictures `[height, width, 3]`, uint8, of all layers: one for each snapshot, beside the snapshot before.

    Args:
      history: of the run.
      network: `actor` or `critic`.
    """
    first, *others = _layers(history, network)
    figure = Figure(figsize=(max(8, 2 * len(others)), 6.4), layout="constrained", dpi=100)
    canvas = FigureCanvasAgg(figure)
    above, below = _halves(figure, 1.0, 1.1)
    axes = [above.subplots(), *below.subplots(1, len(others), squeeze=False)[0]]
    images = [_show(axis, layer, 0, 0, FEWER) for axis, layer in zip(axes, (first, *others), strict=True)]
    for axis, layer in zip(axes, (first, *others), strict=True):
        axis.set_title(layer.title, fontsize="small")
        axis.set_xlabel(layer.axes[0], fontsize="small")
        axis.set_ylabel(layer.axes[1], fontsize="small")
    title = figure.suptitle(_moment_of(history, network, 0))
    _legend(figure)
    for now in range(len(history.steps)):
        for image, layer in zip(images, (first, *others), strict=True):
            image.set_data(_pixels(layer.masks[max(now - 1, 0)], layer.masks[now]))
        title.set_text(_moment_of(history, network, now))
        canvas.draw()
        figure.set_layout_engine("none")  # All pictures are laid out as the first.
        yield np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _layers(history: History, network: str) -> list[_Layer]:
    """The matrices of a network, input to output; of the first critic where there are two."""
    snapshots = (history.matrices(i, network) for i in range(len(history.steps)))
    stacks = [np.stack(masks) for masks in zip(*snapshots, strict=True)]
    labels = history.labels
    inputs = labels.observation_names if network == "actor" else _inputs(labels)
    layers = []
    for k, stack in enumerate(stacks):
        rows, columns = stack.shape[1:]
        into, out = (np.argsort(-stack[-1].sum(axis), kind="stable") for axis in (0, 1))
        title = f"layer {k + 1} of {len(stacks)}, {rows:,} x {columns:,}"
        if k == 0:
            named = f"units, most links first ({int(stack[-1].any(0).sum()):,} of {columns:,} have any)"
            # A network of one's own may first read some of the inputs.
            known = inputs if rows == len(inputs) else ()
            layers.append(_Layer(title, stack[:, :, into], known, (named, "inputs")))
        elif k == len(stacks) - 1:
            turned = stack[:, out].transpose(0, 2, 1)
            names = _outputs(labels.action_names, columns, network)
            layers.append(_Layer(title, turned, names, ("units, most links first", "outputs")))
        else:
            layers.append(_Layer(title, stack[:, out][:, :, into], (), ("units out", "units in")))
    return layers


def _inputs(labels: Labels) -> tuple[str, ...]:
    """What a critic reads."""
    return (*labels.observation_names, *(f"action {name}" for name in labels.action_names))


def _outputs(actions: Sequence[str], outputs: int, network: str) -> Sequence[str]:
    if network == "critic":
        return ("value",)
    parts = ("",) if outputs == len(actions) else (" (mean)", " (log std)")
    return [f"{name}{part}" for part, name in itertools.product(parts, actions)]


def _moments(history: History) -> list[int]:
    """A few snapshots, evenly over training, the first and the last among them."""
    return sorted({history.before(math.floor(step)) for step in np.linspace(0, history.steps[-1], MOMENTS)})


def _halves(figure: Figure, above: float, below: float) -> tuple[SubFigure, SubFigure]:
    """Parts of a figure, one above the other, of so large shares."""
    grid = figure.add_gridspec(2, 1, height_ratios=[above, below])
    return figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])


def _show(axis: Any, layer: _Layer, before: int, now: int, named: int) -> Any:
    """Draw a layer's image; of its rows so many are named, at most."""
    rows, columns = layer.masks.shape[1:]
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    room = axis.get_window_extent()
    # Where a cell is smaller than a pixel, some of them would not be seen.
    smooth = "auto" if room.width < 1.1 * columns or room.height < 1.1 * rows else "nearest"
    pixels = _pixels(layer.masks[before], layer.masks[now])
    image = axis.imshow(pixels, aspect="auto", extent=extent, interpolation=smooth)
    every = math.ceil(len(layer.rows) / named) if layer.rows else 0
    ticks = range(0, len(layer.rows), every) if every else ()
    axis.set_yticks(ticks, [layer.rows[i] for i in ticks], fontsize=6)
    axis.tick_params(length=2, labelsize=6)
    return image


def _pixels(before: np.ndarray, now: np.ndarray) -> np.ndarray:
    """RGB of a mask, by what became of each link; cells are made large, so that none is blurred when it is scaled."""
    colors = np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in PALETTE.values()], np.uint8)
    cells = colors[before.astype(int) + 2 * now - (before & now) + (now & ~before)]
    for axis in (0, 1):
        cells = cells.repeat(math.ceil(CELLS / cells.shape[axis]), axis)
    return cells


def _links(layer: _Layer, before: int, now: int) -> str:
    """How many links a layer has, in words."""
    mask, links = layer.masks[now], int(layer.masks[now].sum())
    told = f"{links:,} links ({100 * links / mask.size:.3g} %)"
    return told if before == now else f"{told}, {int((mask & ~layer.masks[before]).sum()):,} new"


def _moment_of(history: History, network: str, now: int) -> str:
    return f"{headline(history.about['config'])}\n{network} at {_unit(history)} {history.steps[now]:,}"


def _legend(figure: Figure) -> None:
    words = {
        "kept": "link, also before",
        "new": "link, not before",
        "dropped": "no link, but before",
        "absent": "no link",
    }
    patches = [
        Patch(facecolor=PALETTE[name], edgecolor="#888888", lw=0.5, label=label) for name, label in words.items()
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize="small")


def _per_input(history: History, network: str) -> np.ndarray:
    """Links of a network's first layer from each input, `[snapshots, inputs]`; of the first critic."""
    first = _reader(history, network)
    return np.stack([history.matrices(i, network)[first].sum(-1) for i in range(len(history.steps))])


def _reader(history: History, network: str) -> int:
    """The first of a network's matrices that has a row for each of its inputs, in the order of their calls.

    Raises:
      ConfigError: there is none.
    """
    inputs = history.observation_size + (len(history.labels.action_names) if network == "critic" else 0)
    rows = [matrix.shape[0] for matrix in history.matrices(0, network)]
    if inputs not in rows:
        raise ConfigError(f"no matrix of the {network} reads its {inputs} inputs; draw --kind=masks instead.")
    return rows.index(inputs)


def _unit(history: History) -> str:
    """What steps of a history are: those of a clone are updates."""
    return "update" if "updates" in history.about else "step"


def _plural(history: History) -> str:
    return {"update": "updates", "step": "environment steps"}[_unit(history)]


def _unread(policy: Policy) -> tuple[int, ...]:
    """Entries of the observation that no action depends on; none where the network cannot be traced."""
    try:
        program = tracing.trace(policy)
    except ConfigError:
        return ()
    return compaction.compare(program, compaction.compact(program)).unread


def _bars(axis: Any, values: np.ndarray, names: Sequence[str], color: str, title: str) -> None:
    """A bar for each value, from above, beside its name if there are any."""
    axis.barh(range(len(values)), values, color=color)
    axis.set_yticks(range(len(values)), names or [""] * len(values), fontsize=7)
    axis.set_ylim(len(values) - 0.5, -0.5)
    axis.set_title(title, fontsize="small")
    axis.tick_params(axis="x", labelsize=7)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="x", alpha=0.25)


def _draw_over_training(figure: Figure, axis: Any, history: History, links: np.ndarray) -> None:
    """Links `[snapshots, inputs]` as an image."""
    count = len(history.steps)
    # Where all have as many, as those of a full layer, there is no range to spread colours over.
    lowest = 0 if links.min() == links.max() else None
    image = axis.imshow(links.T, aspect="auto", cmap="cividis", interpolation="nearest", vmin=lowest)
    ticks = sorted({0, count // 2, count - 1})
    axis.set_xticks(ticks, [f"{history.steps[tick]:,}" for tick in ticks], fontsize=7)
    axis.set_xlabel(_plural(history), fontsize="small")
    axis.set_yticks([])
    axis.set_title("links of the actor over training", fontsize="small")
    figure.colorbar(image, ax=axis, label="links")
