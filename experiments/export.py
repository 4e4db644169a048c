"""Write a run's policy in the forms that others run: C, ONNX, JAX and NumPy.

python experiments/export.py --workdir=runs/hopper                             all of them, in runs/hopper/export
python experiments/export.py --workdir=runs/hopper --format=c,onnx --policy=best --output=deploy
python experiments/export.py --workdir=runs/hopper --format=c --int8 --check   weights of 8 bits, and what they cost
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from rlx2_jax import envs, export, policies
from rlx2_jax.analysis import statistics
from rlx2_jax.config import command_line
from rlx2_jax.errors import ConfigError
from rlx2_jax.export import Artifact, Export
from rlx2_jax.io import files
from rlx2_jax.policies import Policy
from rlx2_jax.training import evaluation, workdirs

WORKDIR = command_line.define_path("workdir", None, "directory of the run")
POLICY = flags.DEFINE_string("policy", "last", "which policy: last, or best (by the run's own evaluations)")
FORMAT = flags.DEFINE_list(
    "format", [], f"formats, separated by commas: {', '.join(export.FORMATS)} (default: all that can be written here)"
)
OUTPUT = command_line.define_path("output", None, "directory to write to (default: export, in the workdir)")
INT8 = flags.DEFINE_bool("int8", False, "weights of 8 bits, of the format c alone; its error is measured")
TANH = flags.DEFINE_enum("tanh", "libm", ["libm", "approximate"], "tanh of the format c")
CHECK = flags.DEFINE_bool("check", False, "play episodes through what was written, and through the policy")
EPISODES = flags.DEFINE_integer("episodes", 10, "episodes of --check")
SEED = flags.DEFINE_integer("seed", 1_000_000, "seed of the episodes")

SIDE_BY_SIDE, STEPS = 8, 1250
"""Environments and steps in each, from which 10,000 observations are recorded."""

set_up_compilation = command_line.define_compilation_flags()


def main(argv: Sequence[str]) -> int | None:
    """Write the files, and print what they are."""
    del argv
    path = policies.locate(WORKDIR.value, POLICY.value)
    if EPISODES.value < 1:
        raise ConfigError(f"episodes={EPISODES.value}: use at least 1.")
    formats = tuple(FORMAT.value) or export.available()
    export.check_formats(formats)
    if INT8.value and "c" not in formats:
        raise ConfigError("int8 is for the format c; name it with --format.")
    if TANH.value != TANH.default and "c" not in formats:
        raise ConfigError(f"tanh={TANH.value} is for the format c; name it with --format.")
    set_up_compilation()
    workdirs.read_config(path.parent)
    output = OUTPUT.value or path.parent / "export"
    command_line.check_writable(output, "output")
    policy = policies.load(path)
    env = None
    if INT8.value or CHECK.value:
        env = envs.make(policy.about["env"], policy.about["backend"])
        evaluation.check_fits(env, EPISODES.value)
    written = export.save(policy, output, formats, int8=INT8.value, tanh=TANH.value)
    for line in _told(written):
        print(line)
    if env is not None:
        found = _checked(policy, env, written.artifacts)
        summary = output / export.SUMMARY
        files.write_json(summary, {**files.read_json(summary, {}), "check": found})
    return 0


def _told(written: Export) -> list[str]:
    """What was written, in lines."""
    lines = []
    if written.sizes is not None:
        before, after = written.sizes
        rows = [("", "before", "after"), ("widths", *("-".join(map(str, size.widths)) for size in (before, after)))]
        rows += [(name, *(f"{getattr(size, name):,}" for size in (before, after))) for name in ("connections", "bytes")]
        first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
        lines += [f"{name:<{first}}  {old:<{second}}  {new}".rstrip() for name, old, new in rows]
        lines.append(f"inputs that nothing reads: {', '.join(written.unread) or 'none'}")
    for artifact in written.artifacts:
        names = ", ".join(f"{path} ({path.stat().st_size:,} bytes)" for path in artifact.files)
        compared = "not run: there is no C compiler here"
        if artifact.deviation is not None:
            compared = f"deviates from the policy by {artifact.deviation:.1g} at most"
        lines.append(f"{artifact.format}: {names}; {compared}")
    for name in export.FORMATS:
        if name not in export.available() and not FORMAT.value:
            lines.append(f"{name}: not written, for its packages are not installed")
    return lines


def _checked(policy: Policy, env: envs.Environment, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """Deviations on observations of the task, and returns of the same episodes, told and given back."""
    about = policy.about
    observations = _record(policy, env)
    expected = np.asarray(jax.jit(policy.act)(observations))
    functions = {a.format: a.act for a in artifacts if a.act is not None}
    deviations = {
        name: float(np.abs(np.asarray(act(observations)) - expected).max()) for name, act in functions.items()
    }
    for name, deviation in deviations.items():
        print(f"{name}: deviates by {deviation:.1g} at most on {len(observations):,} observations of {about['env']}")
    found: dict[str, Any] = {"observations": len(observations), "deviation": deviations}
    first = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.PRNGKey(SEED.value), EPISODES.value))

    def play(act: evaluation.PolicyFunction) -> list[float]:
        returns = jax.jit(lambda s: evaluation.episode_returns(env, act, s, about["episode_length"]))(first)
        return [float(x) for x in returns]

    in_program = {name: act if name == "jax" else _host(act, policy.sizes[1]) for name, act in functions.items()}
    found["returns"] = {name: play(act) for name, act in {"policy": policy.act, **in_program}.items()}
    for line in _returns_told(found["returns"]):
        print(line)
    return found


def _returns_told(returns: Mapping[str, list[float]]) -> list[str]:
    of = {name: statistics.summarize(np.asarray(values)) for name, values in returns.items()}
    spread = lambda result: f", standard deviation {result.std:.1f}" if result.n > 1 else ""
    return [
        f"{name}: return {result.mean:.1f}{spread(result)}, {result.n} episode{'s' * (result.n > 1)} that begin alike"
        for name, result in of.items()
    ]


def _host(act: export.Function, actions: int) -> evaluation.PolicyFunction:
    """A function of NumPy's arrays inside a compiled program."""

    def function(observation: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((observation.shape[0], actions), np.float32)
        result: jax.Array = jax.pure_callback(lambda x: act(np.asarray(x)), shape, observation)
        return result

    return function


def _record(policy: Policy, env: envs.Environment) -> np.ndarray:
    """Observations `[N, O]` that the policy comes to, and at the end the extremes of each entry, together."""
    many = envs.VectorEnvironment(env, SIDE_BY_SIDE, policy.about["episode_length"], SIDE_BY_SIDE)

    @jax.jit
    def play(key: jax.Array) -> jax.Array:
        def step(state: envs.VectorState, key: jax.Array) -> tuple[envs.VectorState, jax.Array]:
            seen = state.current.observation
            return many.step(state, policy.act(seen), key)[0], seen

        first, *rest = jax.random.split(key, STEPS + 1)
        return jax.lax.scan(step, many.renew(many.init(), first), jax.numpy.stack(rest))[1]

    seen = np.asarray(play(jax.random.PRNGKey(SEED.value))).reshape(-1, env.observation_size)
    return np.concatenate([seen, seen.min(0, keepdims=True), seen.max(0, keepdims=True)])


if __name__ == "__main__":
    command_line.run(main)
