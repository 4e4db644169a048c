"""One run, or clone, as a process of its own: `python -m rlx2_jax.sweeps.worker`, started by `sweeps.workers`.

The first line of standard input says what to do, as JSON: `config`, `workdir`, `teacher`, `cores`, `cache`,
`argv`, `path`, `env`.
When standard input ends, the parent is gone, and the run saves and ends; a clone, which has nothing to save, ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path

from rlx2_jax import envs, policies
from rlx2_jax.config import Config
from rlx2_jax.errors import RlxError
from rlx2_jax.runtime.compilation import use_cache
from rlx2_jax.sweeps.workers import code_of
from rlx2_jax.training.cloning import clone
from rlx2_jax.training.run import train


def main() -> int:
    """Train one run, from its last checkpoint if it has one, or make a clone."""
    task = json.loads(sys.stdin.readline())
    sys.argv = task["argv"]  # The command that a person gave, for the run's records.
    sys.path += [place for place in task["path"] if place not in sys.path]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cores"])
    use_cache(task["cache"])
    threading.Thread(target=_follow_parent, daemon=True).start()
    workdir = Path(task["workdir"])
    try:
        config = Config.from_dict(task["config"])
        if task["env"] != config.env:
            envs.register(config.env, envs.imported(task["env"]))
        if task["teacher"] is not None:
            clone(config, policies.load(Path(task["teacher"])), workdir, overwrite=True)
        else:
            train(config, workdir, resume=True, show_progress=False)
    except RlxError as error:
        print(error, file=sys.stderr)
        return code_of(error)
    return 0


def _follow_parent() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
