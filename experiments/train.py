"""Train one sparse agent. Without flags: RLx2-TD3 at 90 % sparsity on inverted_pendulum, in about two minutes.

python experiments/train.py
python experiments/train.py --preset=td3/hopper --total_steps=300000 --kernel_init=lecun --workdir=runs/hopper
python experiments/train.py --preset=td3/hopper --total_steps=300000 --kernel_init=lecun --workdir=runs/hopper --resume
python experiments/train.py --env=ant --agent=sac --method=rigl --actor_sparsity=0.9 --critic_sparsity=0.75
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from absl import flags

from rlx2_jax import flags as launcher
from rlx2_jax.config import Config, resolve
from rlx2_jax.training.run import train

WORKDIR = flags.DEFINE_string(
    "workdir", None, "where the run leaves its files (default: runs/<agent>-<env>-<method>-<seed>)"
)
RESUME = flags.DEFINE_bool("resume", False, "continue the run in the workdir")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "replace the run in the workdir")
set_up_compilation = launcher.define_compilation_flags()


def main(argv: Sequence[str]) -> int | None:
    """Train as the flags say."""
    del argv
    config = resolve(launcher.read_config())
    set_up_compilation()
    workdir = WORKDIR.value or default_workdir(config, held=RESUME.value or OVERWRITE.value)
    result = train(config, workdir, resume=RESUME.value, overwrite=OVERWRITE.value)
    return 0 if result.finished else 1


def default_workdir(config: Config, *, held: bool) -> Path:
    """`runs/<agent>-<env>-<method>-<seed>`, numbered where it is taken; the last one taken to resume or replace it."""
    task = config.env.replace("/", "-")
    first = Path("runs") / f"{config.agent}-{task}-{config.method}-{config.seed}"
    path, count = first, 1
    while path.exists():
        count += 1
        taken, path = path, first.with_name(f"{first.name}-{count}")
        if held and not path.exists():
            return taken
    return path


if __name__ == "__main__":
    launcher.define_config_flags()
    launcher.run(main)
