"""Evaluate the policy a run left behind, on fresh episodes.

python experiments/evaluate.py --workdir=runs/hopper
python experiments/evaluate.py --workdir=runs/hopper --policy=best --episodes=100 --seed=7
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import jax
from absl import flags

from rlx2_jax import envs, policies
from rlx2_jax.analysis import statistics
from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.io import files
from rlx2_jax.training import evaluation, workdirs

WORKDIR = command_line.define_path("workdir", None, "directory of the run")
POLICY = flags.DEFINE_string("policy", "last", "which policy: last, or best (by the run's own evaluations)")
EPISODES = flags.DEFINE_integer("episodes", 30, "episodes to play")
SEED = flags.DEFINE_integer("seed", 1_000_000, "seed of the episodes; the run's own are other ones")
AS_JSON = flags.DEFINE_bool("json", False, "print one JSON object instead of a sentence")

set_up_compilation = command_line.define_compilation_flags()


def main(argv: Sequence[str]) -> int | None:
    """Play the episodes and print what came of them."""
    del argv
    path = policies.locate(WORKDIR.value, POLICY.value)
    if EPISODES.value < 1:
        raise ConfigError(f"episodes={EPISODES.value}: use at least 1.")
    set_up_compilation()
    workdirs.read_config(path.parent)
    policy = policies.load(path)
    about = policy.about
    env = envs.make(about["env"], about["backend"])
    reset = lambda key: jax.vmap(env.reset)(jax.random.split(key, EPISODES.value))
    evaluation.check_fits(env, EPISODES.value)

    @jax.jit
    def play(key: jax.Array) -> jax.Array:
        return evaluation.episode_returns(env, policy.act, reset(key), about["episode_length"])

    result = statistics.summarize(jax.device_get(play(jax.random.PRNGKey(SEED.value))))
    if AS_JSON.value:
        one = dict.fromkeys(("low", "high", "std")) if result.n == 1 else {}
        numbers = {**result._asdict(), **one, "env_steps": about["env_steps"], "seed": SEED.value}
        print(json.dumps(files.plain(numbers)))
        return 0
    spread = f", 95 % interval [{result.low:.1f}, {result.high:.1f}] of the mean, standard deviation {result.std:.1f}"
    print(
        f"{about['env']}, {POLICY.value} policy after {policies.trained_for(about)}: return {result.mean:.1f}"
        f"{spread if result.n > 1 else ''}, {result.n} episode{'s' * (result.n > 1)}, seed {SEED.value}"
    )
    return 0


if __name__ == "__main__":
    command_line.run(main)
