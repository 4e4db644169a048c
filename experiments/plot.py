"""Draw runs: their learning curves in one picture, or what is inside one of them.

python experiments/plot.py --workdirs=runs/hopper-rlx2,runs/hopper-dense --output=hopper.png
python experiments/plot.py --workdirs=runs/a-sweep --output=sweep.png
python experiments/plot.py --workdir=runs/hopper --kind=masks --output=masks.gif

The picture is PNG, PDF or SVG, as its name ends; masks over training are also GIF or MP4. Kinds:

curves  returns, a panel per task and agent, seeds taken together; of any number of runs
masks   which links there were at a few times of training, or as a film at every snapshot
inputs  what reads each input, by name
layers  links of each layer over training
buffer  transitions kept, and policy distance
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from absl import flags
from matplotlib.figure import Figure

from rlx2_jax import policies
from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files
from rlx2_jax.policies import history
from rlx2_jax.training import drawing, workdirs
from rlx2_jax.viz import comparison, curves, film, masks


def _masks(directory: Path, network: str) -> Figure:
    return masks.draw_strip(history.load(directory), network)


def _inputs(directory: Path, network: str) -> Figure:
    del network
    return masks.draw_inputs(history.load(directory), policies.load(directory))


def _layers(directory: Path, network: str) -> Figure:
    del network
    return masks.draw_layers(history.load(directory))


def _buffer(directory: Path, network: str) -> Figure:
    del network
    return masks.draw_buffer(drawing.read_rows(directory), workdirs.read_config(directory))


INSIDE: Mapping[str, Callable[[Path, str], Figure]] = {
    "masks": _masks,
    "inputs": _inputs,
    "layers": _layers,
    "buffer": _buffer,
}
"""What is drawn of one run."""

WORKDIRS = flags.DEFINE_list("workdirs", [], "directories of runs, and of sweeps for all of theirs")
WORKDIR = command_line.define_path("workdir", None, "directory of a run; needed for what is inside one")
KIND = flags.DEFINE_enum("kind", "curves", ["curves", *INSIDE], "what to draw")
NETWORK = flags.DEFINE_enum("network", "actor", [*history.NETWORKS], "whose masks")
OUTPUT = command_line.define_path("output", None, "file to write: .png, .pdf or .svg; of masks also .gif or .mp4")
TITLE = flags.DEFINE_string("title", None, "heading of curves (default: task and agent)")


def main(argv: Sequence[str]) -> int | None:
    """Draw as the flags say."""
    del argv
    # A run that is named twice is one run.
    named = command_line.paths(WORKDIRS) + ([] if WORKDIR.value is None else [WORKDIR.value])
    directories = [*{path.resolve(): path for place in named for path in _runs(place)}.values()]
    if not directories:
        raise ConfigError("nothing to draw; name runs with --workdirs, or one with --workdir.")
    if OUTPUT.value is None:
        raise ConfigError("nowhere to draw; name a file with --output, such as picture.png.")
    films = masks.FILMS if KIND.value == "masks" else ()
    command_line.check_output(OUTPUT.value, OUTPUT.name, (*curves.FORMATS, *films))
    if KIND.value != "curves" and len(directories) > 1:
        raise ConfigError(f"--kind={KIND.value} draws one run, not {len(directories)}; name it with --workdir.")
    if KIND.value != "masks" and NETWORK.value != NETWORK.default:
        raise ConfigError(f"--network says whose masks are drawn; leave it out of --kind={KIND.value}.")
    if KIND.value != "curves" and TITLE.value is not None:
        raise ConfigError(f"--title is the heading of curves; leave it out of --kind={KIND.value}.")
    data = _draw(directories, OUTPUT.value.suffix.lower())
    OUTPUT.value.parent.mkdir(parents=True, exist_ok=True)
    files.write_bytes(OUTPUT.value, data)
    print(f"wrote {OUTPUT.value}")
    return 0


def _runs(directory: Path) -> list[Path]:
    """The runs of a sweep that were evaluated, or a run by itself."""
    if not (directory / workdirs.PLAN).exists():
        return [directory]
    begun = sorted(path.parent for path in directory.glob("runs/*/metrics.jsonl"))
    found = [path for path in begun if workdirs.read_rows(path)]
    if found and (left := [path.name for path in begun if path not in found]):
        print(f"left out, not evaluated yet: {', '.join(left)}", file=sys.stderr)
    return found or begun or [directory]


def _draw(directories: Sequence[Path], ending: str) -> bytes:
    """The bytes of a file of what the flags ask for."""
    if KIND.value == "curves":
        figure = comparison.draw(comparison.arrange([drawing.read_run(path) for path in directories]), TITLE.value)
        return curves.render(figure, ending)
    workdirs.read_config(directories[0])
    if ending in masks.FILMS:
        pictures = masks.animate(history.load(directories[0]), NETWORK.value)
        return (
            film.write_gif(pictures, masks.FPS, [*masks.PALETTE.values()])
            if ending == ".gif"
            else film.write_mp4(pictures, masks.FPS)
        )
    return curves.render(INSIDE[KIND.value](directories[0], NETWORK.value), ending)


if __name__ == "__main__":
    command_line.run(main)
