"""What all tests share: the compilation cache, the reference vectors, small runs, and checks of sparsity."""

import contextlib
import copy
import gc
import io
import os
import pathlib
import resource
import runpy
import signal
import subprocess
import sys
from typing import NamedTuple
from unittest import mock

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import threadpoolctl
from absl import flags

from rlx2_jax.config import Config
from rlx2_jax.networks import masking
from rlx2_jax.replay.buffer import Batch
from rlx2_jax.runtime import compilation
from rlx2_jax.training import record
from tests import preloaded

ROOT = pathlib.Path(__file__).parents[1]

PAPER_AGENTS = ("td3", "sac")
"""Agents that the paper makes sparse."""

TD3_THEN_SAC = ("td3", pytest.param("sac", marks=pytest.mark.slow))
"""The same, where what one shows the other hardly ever denies, and takes as long to."""

jax.config.update("jax_compilation_cache_dir", os.environ.get("RLX2_TEST_CACHE", str(ROOT / ".cache" / "jax")))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
# Most of a test's time is compilation; the programs are the same, their machine code is less polished. Processes that
# tests start do likewise, and so share the cache.
UNPOLISHED = "JAX_DISABLE_MOST_OPTIMIZATIONS"
os.environ[UNPOLISHED] = "1"
jax.config.update(UNPOLISHED.lower(), True)
# Half the time again: loops are emitted the plain way. Only the version it was seen with is sure to know the flag.
EMITTERS = "--xla_cpu_use_fusion_emitters=false"
if jax.__version_info__[:2] == (0, 10) and EMITTERS not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EMITTERS}".strip()
compilation.use_precision("float32")
# As in runs (see `numerics.one_blas_thread`): tests side by side would wait for each other's threads.
os.environ["OPENBLAS_NUM_THREADS"] = "1"
threadpoolctl.threadpool_limits(1, user_api="blas")

# What a test sends is heard also where the tests themselves run in the background or under nohup, which ignore it.
for number, heard in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, heard)

# The same examples everywhere: a test that fails, fails again.
hypothesis.settings.register_profile("tests", max_examples=60, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


LONGEST = (
    "data_parallel",
    "tickets",
    "packed",
    "mujoco",
    "program",
    "cloning",
    "agents",
    "study_report",
    "study_plan",
    "launchers",
    "kernels",
    "export_c",
    "export",
    "run",
    "sweep",
    "diagnostics",
    "sparse",
    "own_envs",
    "settings",
    "documents",
    "envs",
    "topology",
    "workdir",
    "benchmark_env",
    "sparse_events",
    "sweep_layout",
    "benchmark_sparse",
    "public",
)
"""Files whose tests of the default set take longest, in the order of their length."""

LONGEST_SLOW = (
    "other_python",
    "notebooks",
    "study_launcher",
    "sweep_launcher",
    "learning",
    "attacks",
    "mujoco",
    "package",
    "envs",
    "settings",
    "documents",
    "export",
    "sparse_digits",
    "kernels",
    "data_parallel",
    "rollout",
    "own_methods",
    "packed",
    "droq",
    "program",
    "cloning",
    "benchmark_env",
    "page",
)
"""The same of the slow set; what waits for packages to be fetched comes first."""


def pytest_terminal_summary(terminalreporter):
    """What tests recorded as `told`, to be read by people, also if they ran in other processes."""
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "told":
                terminalreporter.write_line(value)


def pytest_sessionfinish():
    """Keep the compiled programs from the collector.

    pytest looks five times through all there is for errors that nobody saw, which takes so long with what a process
    has compiled that xdist interrupts it, with a traceback after the last test.
    """
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Begin with the longest files: a worker takes whole ones, so that what their tests share is made once."""
    longest = LONGEST_SLOW if config.option.markexpr == "slow" else LONGEST
    assert all((ROOT / "tests" / f"test_{name}.py").exists() for name in longest)
    rank = {f"test_{name}.py": place for place, name in enumerate(longest)}
    items.sort(key=lambda item: rank.get(item.path.name, len(longest)))


@pytest.fixture(autouse=True, scope="session")
def _plain_pictures():
    """Of a run that is trained in a test's own process."""
    with mock.patch.object(record, "curves", preloaded.PLAIN):
        yield


@pytest.fixture
def full():
    """A function that limits files to so many bytes, as a full disk does, until the test ends."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="session")
def vectors():
    """Directory of reference inputs and outputs: densities, a topology event, an n-step target batch."""
    return ROOT / "tests" / "vectors"


def small(**changes):
    """A run of 1200 steps in which everything happens: warm-up, events, n-step targets, buffer checks."""
    settings = {
        "env": "probe/action",
        "num_envs": 4,
        "hidden": (16, 16),
        "batch_size": 16,
        "total_steps": 1200,
        "warmup_steps": 200,
        "episode_length": 10,
        "eval_every": 400,
        "eval_episodes": 4,
        "chunk_steps": 200,
        "checkpoint_every": 600,
        "evolve_interval": 50,
        "n_step_delay": 300,
        "buffer_max": 800,
        "buffer_min": 100,
        "buffer_check_interval": 100,
        "reset_pool": 8,
        "compute": "masked",
    }
    return Config(**(settings | changes))


def random_batch(seed, shape, observation_size, action_size, n_max=3):
    """A batch of random windows with the given leading axes, some of them not to be learned from."""
    rng = np.random.default_rng(seed)
    normal = lambda *tail: jnp.asarray(rng.normal(size=(*shape, *tail)), jnp.float32)
    return Batch(
        observation=normal(observation_size),
        action=jnp.tanh(normal(action_size)),
        partial_return=normal(),
        bootstrap_discount=jnp.asarray(rng.choice([0.0, 0.97], shape), jnp.float32),
        next_observation=normal(observation_size),
        between=normal(n_max - 1, observation_size),
        between_discount=jnp.asarray(rng.choice([0.0, 0.98], (*shape, n_max - 1)), jnp.float32),
        weight=jnp.asarray(rng.random(shape) < 0.9, jnp.float32),
    )


def links_of(mask):
    """Active links of each matrix: a list over layers, an array over the leading axes of each."""
    return [np.asarray(kernel).sum((-2, -1)) for kernel in masking.kernels(mask)]


def assert_zero_off_mask(tree, mask):
    """Every entry of a parameter-shaped tree off the mask is exactly zero."""
    chex.assert_trees_all_equal(tree, masking.apply(tree, mask))


def assert_sparse(network, links):
    """Parameters, targets and Adam moments are exactly zero off masks with the given numbers of links."""
    for tree in (network.params, network.target, network.adam.mu, network.adam.nu):
        if tree is not None:
            assert_zero_off_mask(tree, network.mask)
    for found, count in zip(links_of(network.mask), links, strict=True):
        np.testing.assert_array_equal(found, count)


def assert_finite(tree):
    """No NaN and no infinity anywhere."""
    for leaf in jax.tree.leaves(tree):
        assert np.isfinite(np.asarray(leaf)).all()


def equations(jaxpr, inside=()):
    """Every equation of a program with the names of the primitives around it."""
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, inside
        for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(value, "eqns"):
                yield from equations(getattr(value, "jaxpr", value), (*inside, eqn.primitive.name))


def operand_axes(primitive, function, *args):
    """How many axes the operand of each call of a primitive has in a program."""

    def calls(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == primitive:
                yield eqn.invars[0].aval.ndim
            for value in jax.tree.leaves(eqn.params, is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(value, "eqns"):
                    yield from calls(getattr(value, "jaxpr", value))

    return list(calls(jax.make_jaxpr(function)(*args).jaxpr))


def census(function, *args):
    """Numbers of branches, and of matrix products made at every step, due or not."""
    found = list(equations(jax.make_jaxpr(function)(*args).jaxpr))
    branches = sum(name == "cond" for name, _ in found)
    return branches, sum(name == "dot_general" and "cond" not in inside for name, inside in found)


def shown(count):
    """The value of `XLA_FLAGS` that makes a process see so many devices, beside what it is for all tests."""
    return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()


def launch(script, *arguments, cwd=None, **variables):
    """Run a launcher as a person would, with environment variables beside those of this process."""
    return subprocess.run(
        [sys.executable, str(ROOT / "experiments" / script), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=1500,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )


class Done(NamedTuple):
    """What a launcher gave, by the names that `subprocess` has for it."""

    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def own_settings():
    """Flags that are defined, and what launchers set of JAX, are as before afterwards."""
    values, configured = vars(flags.FLAGS), {name: jax.config.values[name] for name in CONFIGURED}
    kept = {name: copy.copy(value) for name, value in values.items()}
    try:
        yield
    finally:
        values.clear()
        values.update(kept)
        for name, value in configured.items():
            jax.config.update(name, value)


def launch_here(script, *arguments, cwd=None):
    """Run a launcher as `launch` does, but in this process, where nothing is to be imported: for what it refuses."""
    path = str(ROOT / "experiments" / script)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code = 0
    try:
        with (
            contextlib.chdir(cwd or os.getcwd()),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "argv", [path, *arguments]),
            own_settings(),
        ):
            runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        code = end.code or 0
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


CONFIGURED = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_default_matmul_precision",
)
"""What launchers set of JAX."""


def cached():
    """The flag that lets a launcher use the tests' compilation cache."""
    return f"--compilation_cache={jax.config.jax_compilation_cache_dir}"
