"""Runs as pictures take them, from their directories."""

from __future__ import annotations

from pathlib import Path

from rlx2_jax.errors import WorkdirError
from rlx2_jax.training import workdirs
from rlx2_jax.viz import comparison
from rlx2_jax.viz.curves import Rows


def read_rows(workdir: str | Path) -> Rows:
    """The evaluations of the run of a directory, of which there is one at least.

    Raises:
      WorkdirError: there is none yet, or it is a clone.
      FileError: they are damaged.
    """
    workdirs.refuse_clone(Path(workdir))
    if rows := workdirs.read_rows(Path(workdir)):
        return rows
    raise WorkdirError(f"{workdir} holds no evaluation yet; let its run go on.")


def read_run(workdir: str | Path) -> comparison.DrawnRun:
    """The run of a directory as one of several (see `viz.comparison`), with its evaluations so far.

    Raises:
      WorkdirError: the directory holds no run, or none that was evaluated.
      FileError: its evaluations are damaged.
    """
    directory = Path(workdir)
    config = workdirs.read_config(directory)
    what = {name: value for name, value in config.items() if name not in workdirs.HOW}
    return comparison.DrawnRun(str(directory), what, read_rows(directory))
