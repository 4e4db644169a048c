"""Runs as pictures of several take them (`viz.comparison`), from their directories."""

from __future__ import annotations

from pathlib import Path

from rlx2_jax.errors import WorkdirError
from rlx2_jax.training import workdirs
from rlx2_jax.viz import comparison


def read_run(workdir: str | Path) -> comparison.DrawnRun:
    """The run of a directory, with what was evaluated of it so far.

    Raises:
      WorkdirError: the directory holds no run, or none that was evaluated.
      FileError: its evaluations are damaged.
    """
    directory = Path(workdir)
    config = workdirs.read_config(directory)
    rows = workdirs.read_rows(directory)
    if not rows:
        raise WorkdirError(f"{directory} holds no evaluation yet; let its run go on.")
    what = {name: value for name, value in config.items() if name not in workdirs.HOW}
    return comparison.DrawnRun(str(directory), what, rows)
