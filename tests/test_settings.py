"""Settings of JAX that people have for the rest of their process: a run is the same under them, or at least runs."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl

from rlx2_jax import envs, kernels
from rlx2_jax.config import resolve
from rlx2_jax.networks.structure import structure
from rlx2_jax.training import evaluation, make_train, train
from tests.conftest import ROOT, small

SPARSE = {"actor_sparsity": 0.6, "critic_sparsity": 0.5}
KEY = jax.random.PRNGKey(0)
HAS_MJX = importlib.util.find_spec("mujoco.mjx") is not None
FEW = {
    "total_steps": 32, "warmup_steps": 20, "eval_every": 32, "chunk_steps": 8, "batch_size": 4, "buffer_max": 40,
    "buffer_min": 20, "n_step_delay": 8, "evolve_interval": 4, "buffer_check_interval": 16, "eval_episodes": 1,
}  # fmt: skip


@contextlib.contextmanager
def strange():
    """All that changes the types and shapes of results at once."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.mark.parametrize("agent", ["td3", "sac"])
@pytest.mark.parametrize("compute", ["masked", "packed"])
def test_a_whole_run_has_the_same_shapes_and_types_under_any_rules(agent, compute):
    run = make_train(small(agent=agent, compute=compute, **SPARSE))
    usual = jax.eval_shape(run, KEY)
    with strange():
        found = jax.eval_shape(make_train(small(agent=agent, compute=compute, **SPARSE)), KEY)
    chex.assert_trees_all_equal(found, usual)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} <= {"float32", "int32", "uint32", "uint8", "bool"}


def test_links_of_a_method_that_prunes_are_counted_under_any_rules():
    config = resolve(small(method="sparser", **SPARSE))
    usual = structure(config, 5, 2)
    with strange():
        assert structure(config, 5, 2) == usual


def test_a_run_under_other_rules_is_the_same_run():
    config = small(compute="packed", **SPARSE)
    usual = train(config, show_progress=False)
    with strange():
        found = train(config, show_progress=False)
        action = found.policy.act(np.linspace(-1, 1, 6)[:, None])
    assert [row["return_mean"] for row in found.rows] == [row["return_mean"] for row in usual.rows]
    chex.assert_trees_all_equal(found.policy.params, usual.policy.params)
    assert action.dtype == jnp.float32
    np.testing.assert_array_equal(action, usual.policy.act(np.linspace(-1, 1, 6, dtype=np.float32)[:, None]))


def test_tasks_and_scores_are_single_precision_under_any_rules():
    with strange():
        own = [("probe/action", "spring"), ("inverted_pendulum", "spring")]
        for name, backend in own + [("InvertedPendulum-v4", "mjx")] * HAS_MJX:
            env = envs.make(name, backend)
            first = jax.eval_shape(jax.vmap(env.reset), jax.random.split(KEY, 3))
            policy = lambda observation, size=env.action_size: jnp.zeros((*observation.shape[:-1], size), jnp.float32)
            returns = jax.eval_shape(lambda s, env=env, p=policy: evaluation.play(env, p, s, 5, 0.9), first)
            assert {leaf.dtype.name for leaf in jax.tree.leaves((first.observation, returns))} == {"float32"}


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_other_kinds_of_keys_make_a_run(kind):
    with jax.default_prng_impl(kind):
        key = jax.random.PRNGKey(0)
        assert kernels.fast_key(key) is key
        state, _ = jax.eval_shape(make_train(small(agent="sac", compute="packed", **SPARSE)), key)
    assert state.key.shape == (4,)


def test_blas_has_one_thread_in_a_run_and_what_it_had_afterwards():
    threads = lambda: {found["num_threads"] for found in threadpoolctl.threadpool_info() if found["user_api"] == "blas"}
    seen = []
    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        before = threads()
        train(small(), show_progress=False, on_report=lambda rows: seen.append(threads()))
        assert threads() == before
    assert seen == [{1}] * 3


STRANGE = "JAX_ENABLE_X64=1 JAX_NUMPY_DTYPE_PROMOTION=strict JAX_NUMPY_RANK_PROMOTION=raise JAX_DEBUG_NANS=1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("agent", "settings"),
    [
        ("sac", STRANGE),  # TD3 is above, in this process.
        ("td3", "JAX_DEFAULT_PRNG_IMPL=rbg"),
        ("sac", "JAX_DEFAULT_PRNG_IMPL=unsafe_rbg"),
        ("sac", "JAX_ENABLE_CUSTOM_PRNG=1"),
        ("td3", "JAX_DISABLE_JIT=1"),
        ("sac", "JAX_DISABLE_JIT=1"),
    ],
)
def test_a_process_with_settings_trains_and_evaluates(agent, settings, tmp_path):
    compute = {"td3": "packed", "sac": "masked"}[agent]
    config = small(agent=agent, compute=compute, **SPARSE, **(FEW if "JIT" in settings else {}))
    order = json.dumps({"config": config.to_dict(), "workdir": str(tmp_path)})
    done = subprocess.run(
        [sys.executable, "-m", "tests.test_settings"],
        input=order,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=1200,
        env={**os.environ, **dict(setting.split("=") for setting in settings.split())},
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["finished"]
    assert np.isfinite(found["returns"]).all()
    if settings == STRANGE:
        usual = train(config, show_progress=False)
        np.testing.assert_allclose(found["returns"], [row["return_mean"] for row in usual.rows], rtol=1e-5)


def main():
    """A run in a process of its own, as told on standard input, and that its parts have the usual types."""
    from rlx2_jax.config import Config
    from tests import conftest  # noqa: F401

    order = json.loads(sys.stdin.read())
    result = train(Config.from_dict(order["config"]), order["workdir"], show_progress=False)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(result.policy.params)} == {"float32"}
    print(json.dumps({"finished": result.finished, "returns": [row["return_mean"] for row in result.rows]}))


if __name__ == "__main__":
    main()
