"""Watch the policy a run left behind: one episode as a page to turn about in, or as a film.

python experiments/rollout.py --workdir=runs/hopper
python experiments/rollout.py --workdir=runs/hopper --policy=best --output=hopper.html,hopper.gif,hopper.mp4

The page is one file that needs no network. The episode is the one that evaluate.py plays with --episodes=1 and this
seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from absl import flags

from rlx2_jax import policies
from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files
from rlx2_jax.training import workdirs
from rlx2_jax.viz import film, viewer
from rlx2_jax.viz.rollout import Rollout, roll_out

WORKDIR = command_line.define_path("workdir", None, "directory of the run")
POLICY = flags.DEFINE_string("policy", "last", "which policy: last, or best (by the run's own evaluations)")
OUTPUT = flags.DEFINE_list(
    "output", [], "files to write, ending with .html, .gif or .mp4 (default: rollout.html there)"
)
SEED = flags.DEFINE_integer("seed", 1_000_000, "seed of the episode; the run's own are other ones")
STEPS = flags.DEFINE_integer("steps", None, "steps at most (default: the task's episode)")
FPS = flags.DEFINE_integer("fps", 25, "pictures per second of a film, which runs at true speed")
WIDTH = flags.DEFINE_integer("width", 480, "of a film, in pixels")
HEIGHT = flags.DEFINE_integer("height", 360, "the same")

WRITERS: dict[str, Callable[[Rollout], bytes]] = {
    ".html": viewer.page,
    ".gif": lambda rollout: film.write_gif(_pictures(rollout), FPS.value),
    ".mp4": lambda rollout: film.write_mp4(_pictures(rollout), FPS.value),
}
"""How a file of each ending is made."""

LARGEST, FASTEST = 4096, 50
"""Pixels of a side, and pictures per second: GIF has no more."""

set_up_compilation = command_line.define_compilation_flags()


def main(argv: Sequence[str]) -> int | None:
    """Play one episode and write what the flags ask for."""
    del argv
    path = policies.locate(WORKDIR.value, POLICY.value)
    outputs = command_line.paths(OUTPUT) or [path.parent / "rollout.html"]
    _check(outputs)
    set_up_compilation()
    workdirs.read_config(path.parent)
    policy = policies.load(path)
    rollout = roll_out(policy, jax.random.split(jax.random.PRNGKey(SEED.value), 1)[0], STEPS.value)
    print(
        f"{policy.about['env']}, {POLICY.value} policy after {policies.trained_for(policy.about)}: "
        f"return {rollout.episode_return:.1f} in {len(rollout.rewards):,} steps, {rollout.ending}, seed {SEED.value}"
    )
    for output in outputs:
        content = WRITERS[output.suffix.lower()](rollout)
        output.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(output, content)
        print(f"wrote {output} ({len(content):,} bytes)")
    return 0


def _check(outputs: Sequence[Path]) -> None:
    """Refuse what could not be written, before anything is played."""
    for path in outputs:
        command_line.check_output(path, OUTPUT.name, tuple(WRITERS))
    if STEPS.value is not None and STEPS.value < 1:
        raise ConfigError(f"steps={STEPS.value}: use at least 1.")
    if not 1 <= FPS.value <= FASTEST:
        raise ConfigError(f"fps={FPS.value}: use 1 to {FASTEST}.")
    for side in (WIDTH, HEIGHT):
        if not 16 <= side.value <= LARGEST or side.value % 2:
            raise ConfigError(f"{side.name}={side.value}: use an even number from 16 to {LARGEST}.")
    endings = {path.suffix.lower() for path in outputs}
    if endings - {".html"}:
        film.choose_gl()
    if ".mp4" in endings:
        film.find_ffmpeg()


def _pictures(rollout: Rollout) -> film.Pictures:
    moments = film.moments(len(rollout.rewards) + 1, rollout.dt, FPS.value)
    return film.draw(rollout, moments, film.Size(WIDTH.value, HEIGHT.value))


if __name__ == "__main__":
    command_line.run(main)
