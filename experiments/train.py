"""Train one sparse agent. Without flags: RLx2-TD3 at 90 % sparsity on inverted_pendulum, in 40 s on two idle cores.

python experiments/train.py
python experiments/train.py --preset=td3/hopper --total_steps=300000 --kernel_init=lecun --workdir=runs/hopper
python experiments/train.py --resume --workdir=runs/hopper
python experiments/train.py --env=ant --agent=sac --method=rigl --actor_sparsity=0.9 --critic_sparsity=0.75

With --resume a run goes on with its own settings; with settings, one of which nothing was saved yet begins. So the
command that starts a run, with --resume added, serves a queue that may start it again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from rlx2_jax.config import Config, command_line, presets, resolve
from rlx2_jax.training import workdirs
from rlx2_jax.training.run import train

WORKDIR = command_line.define_path(
    "workdir", None, "where the run leaves its files (default: runs/<agent>-<env>-<method>-<seed>)"
)
RESUME = flags.DEFINE_bool("resume", False, "continue the run in the workdir, if one was begun there")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the run in the workdir")
set_up_compilation = command_line.define_compilation_flags()


def main(argv: Sequence[str]) -> int | None:
    """Train as the flags say."""
    del argv
    given = command_line.read_given()
    settings = presets.settings(given.pop("preset", ())) | given
    config = Config.from_dict(settings)
    workdir = WORKDIR.value or default_workdir(config, held=RESUME.value or OVERWRITE.value)
    # Who names a directory and nothing else means a run that is there, not that of the defaults.
    meant = WORKDIR.value and not settings
    if RESUME.value and (meant or (workdir / "config.json").exists()):
        config = workdirs.resumed(workdir, settings)
    resolve(config)
    set_up_compilation()
    named = WORKDIR.value or RESUME.value or OVERWRITE.value
    with contextlib.nullcontext(workdir) if named else claimed(config) as workdir:
        result = train(
            config,
            workdir,
            resume=RESUME.value,
            overwrite=OVERWRITE.value,
            resume_with=command_line.command(
                "--resume", f"--workdir={workdir}", keep=("compilation_cache", "precision")
            ),
        )
    return 0 if result.finished else 1


def default_workdir(config: Config, *, held: bool) -> Path:
    """`runs/<agent>-<env>-<method>-<seed>`, numbered where it is taken; the last one taken to resume or replace it."""
    name = f"{config.agent}-{config.env}-{config.method}-{config.seed}"
    first = Path("runs") / workdirs.in_name(name)
    path, count = first, 1
    while path.exists():
        count += 1
        taken, path = path, first.with_name(f"{first.name}-{count}")
        if held and not path.exists():
            return taken
    return path


@contextlib.contextmanager
def claimed(config: Config) -> Iterator[Path]:
    """A default workdir that no other start takes, because it is made; it is not left behind empty."""
    runs = Path("runs")
    command_line.check_writable(runs, WORKDIR.name)
    new = not runs.exists()
    runs.mkdir(exist_ok=True)
    while True:
        path = default_workdir(config, held=False)
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):  # It holds a run.
            path.rmdir()
            if new:
                runs.rmdir()


if __name__ == "__main__":
    command_line.define_config_flags()
    command_line.run(main)
