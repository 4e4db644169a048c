"""Draw the learning curves of several runs in one picture: a panel per task and agent, seeds taken together.

python experiments/plot.py --workdirs=runs/hopper-rlx2,runs/hopper-dense --output=hopper.png

The picture is PNG, PDF or SVG, as its name ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.training import drawing
from rlx2_jax.viz import comparison, curves

WORKDIRS = flags.DEFINE_list("workdirs", [], "directories of the runs")
OUTPUT = command_line.define_path("output", None, "file to write, which ends with .png, .pdf or .svg")
TITLE = flags.DEFINE_string("title", None, "heading (default: task and agent)")


def main(argv: Sequence[str]) -> int | None:
    """Draw as the flags say."""
    del argv
    if not WORKDIRS.value or OUTPUT.value is None:
        raise ConfigError("nothing to draw; name runs with --workdirs and a file with --output.")
    command_line.check_output(OUTPUT.value, OUTPUT.name, curves.FORMATS)
    # A run that is named twice is one run.
    directories = {path.resolve(): path for path in command_line.paths(WORKDIRS)}
    figure = comparison.draw(comparison.arrange([drawing.read_run(path) for path in directories.values()]), TITLE.value)
    OUTPUT.value.parent.mkdir(parents=True, exist_ok=True)
    curves.save(figure, OUTPUT.value)
    print(f"wrote {OUTPUT.value}")
    return 0


if __name__ == "__main__":
    command_line.run(main)
