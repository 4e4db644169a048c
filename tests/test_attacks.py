"""What a machine, a task or a person may do to a run, tried on real processes: each attack bounded in time."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs
from rlx2_jax.envs.base import State
from rlx2_jax.io import files
from rlx2_jax.runtime import native
from rlx2_jax.training import evaluation, train
from tests.conftest import ROOT, cached, small
from tests.forks import Fork
from tests.test_run import flags_of, without_clocks

SECONDS = 240
"""No process of an attack may take longer, on a machine that others use too."""


def start(script, *arguments):
    """A launcher's process."""
    return Fork(ROOT / "experiments" / script, *arguments, PYTHONPATH=str(ROOT))


def finish(process):
    """Wait for a process; its exit code and what it said."""
    _, said = process.communicate(timeout=SECONDS)
    return process.returncode, said


# Environments that misbehave, in the place of a probe.


class Odd:
    """A task of one observation that never ends by itself; its rewards and observations are as given."""

    observation_size = action_size = 1

    def __init__(self, reward=lambda s, a: 1 - (a - s / 2) ** 2, observed=lambda s: s, first=lambda s: s):
        self._reward, self._observed, self._first = reward, observed, first

    def reset(self, key):
        s = jax.random.uniform(key, (1,), minval=-1.0)
        return State(s, self._first(s), jnp.zeros(()), jnp.asarray(False))

    def step(self, state, action):
        following = jnp.mod(state.physics + 0.37 + 1, 2) - 1
        reward = self._reward(state.physics[0], action[0])
        return State(following, self._observed(following), reward, jnp.asarray(False))


def trained(monkeypatch, odd, **changes):
    """A small run on a task that misbehaves in training, and is well when it is evaluated."""
    well = Odd()
    monkeypatch.setattr(envs, "make", lambda *names: odd)
    play = evaluation.play
    monkeypatch.setattr(
        evaluation,
        "play",
        lambda env, policy, state, *rest: play(well, policy, state._replace(observation=state.physics), *rest),
    )
    return train(small(**changes), show_progress=False)


RARE = 0.9
"""Above this state, tasks misbehave: one step in twenty."""


@pytest.mark.slow
@pytest.mark.parametrize("where", ["reward", "observation", "first observation"])
def test_values_that_are_not_finite_never_reach_what_is_learned(monkeypatch, where):
    """NaN and both infinities are counted, and the networks stay finite, wherever in the task they come from."""
    value = lambda s: jnp.select([s > 0.97, s > 0.94], [jnp.inf, -jnp.inf], jnp.nan)
    spoil = lambda s: jnp.where(s > RARE, value(s), s)
    odd = {
        "reward": Odd(reward=lambda s, a: jnp.where(s > RARE, value(s), 1 - (a - s / 2) ** 2)),
        "observation": Odd(observed=spoil),
        "first observation": Odd(first=spoil),
    }[where]
    result = trained(monkeypatch, odd)
    assert result.finished
    assert result.summary["nonfinite"] > 0
    for leaf in jax.tree.leaves(result.policy.params):
        assert np.isfinite(leaf).all()
    assert all(np.isfinite(row[name]) for row in result.rows for name in ("return_mean", "critic_loss", "q_mean"))


@pytest.mark.slow
@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_observations_that_never_change_are_no_fault(monkeypatch, agent):
    """Nothing divides by a spread or a rank that is zero."""
    constant = Odd(observed=jnp.ones_like, first=jnp.ones_like)
    monkeypatch.setattr(envs, "make", lambda *names: constant)
    result = train(small(agent=agent), show_progress=False)
    assert result.finished
    unknown = {name for row in result.rows for name, value in row.items() if not np.isfinite(value)}
    assert not unknown


@pytest.mark.slow
def test_clocks_that_jump_change_no_duration(monkeypatch, tmp_path):
    """The time of day goes back and forth by years, at every look."""
    rng, real = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: max(0.0, real() + rng.uniform(-1e8, 1e8)))
    result = train(small(checkpoint_every=400), tmp_path, show_progress=False)
    assert result.finished
    walls = [row["wall_seconds"] for row in result.rows]
    assert walls == sorted(walls) and walls[0] > 0
    for name in ("steps_per_second", "updates_per_second", "wall_seconds", "compile_seconds"):
        assert 0 < result.summary[name] < 1e9


# Kernels given nonsense.

NONSENSE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from rlx2_jax.runtime import native
native.load()
rng = np.random.default_rng(int(sys.argv[1]))
extremes = np.array([-2**31, -2, -1, 0, 1, 2, 3, 16, 17, 64, 2**31 - 1])

def index(count, most):
    kind = rng.integers(4)
    if kind == 0:
        return rng.integers(-2**31, 2**31, count)
    if kind == 1:
        return rng.choice(extremes, count)
    values = rng.integers(0, max(1, most), count)
    return np.sort(values) if kind == 2 else values

def starts(rows, links):
    rows = rows if rng.integers(8) else -1
    found = np.sort(index(rows + 1, links + 1)) if rng.integers(2) else index(rows + 1, links + 1)
    if len(found) and rng.integers(2):
        found[0], found[-1] = 0, links
    return found

ints = lambda x: jnp.asarray(np.asarray(x, np.int64).astype(np.int32))
floats = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
struct = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct(shape, dtype)
near = lambda n: max(0, int(n + rng.choice([0, 0, 0, 0, 0, -1, 1])))

def perceptron():
    batch, (i, h, o) = int(rng.choice([0, 1, 64, 130])), rng.integers(0, 9, 3)
    capacity = rng.integers(0, 20, 2)
    links = rng.integers(0, capacity + 1) if rng.integers(2) else capacity
    layers = [(i, h, capacity[0], links[0]), (h, o, capacity[1], links[1])]
    normalised = bool(rng.integers(2))
    size = near(sum(c + b for _, b, c, _ in layers) + 2 * h * normalised)
    if rng.integers(2):
        operands = [x for a, b, c, l in layers for x in (ints(starts(near(b), l)), ints(index(c, a)))]
        return native.FORWARD, [struct(batch, o)], (floats(batch, i), floats(size), *operands), {
            "instructions": "auto", "normalised": normalised, "arrays": np.int64(1)}
    operands = [x for a, b, c, l in layers for x in (
        ints(starts(near(b), l)), ints(index(c, a)),
        ints(starts(near(a), l)), ints(index(c, b)), ints(index(near(c), l)))]
    tiles = -(-batch // 64)
    groups = max(0, -(-tiles // 2) - 1)
    sizes = np.array(rng.choice([[i], [-1], [2**63 - 1]][:1 + 2 * int(rng.integers(2))]).ravel(), np.int64)
    return native.BACKWARD, [struct(size), struct(groups, size), struct(batch, i)], (
        floats(batch, o), floats(tiles * (i + h + normalised) * 64), floats(size), *operands), {
        "instructions": "auto", "normalised": normalised, "weights": True, "sizes": sizes,
        "wanted": np.ones(1, np.int64)}

def windows():
    R, E, F, O, A = (int(x) for x in rng.integers(0, 5, 5))
    n = int(rng.integers(0, 40))
    ring = floats(R, E, O), floats(R, E, A), floats(R, E), ints(index(R * E, F + 1).reshape(R, E)), floats(F, E, O)
    results = [struct(n, O), struct(n, A), struct(n), struct(n), struct(n, O), struct(n, dtype=jnp.int32), struct(n)]
    scalars = jnp.int32(int(rng.choice(extremes))), jnp.float32(0.9)
    return native.TAKE_WINDOWS, results, (*ring, ints(index(n, 50)), ints(index(n, E)), *scalars), {
        "n_max": np.int64(rng.integers(-1, 6))}

def rows():
    table = floats(int(rng.integers(0, 6)), int(rng.integers(0, 4)))
    n = int(rng.integers(0, 40))
    return native.TAKE_ROWS, [struct(n, table.shape[1])], (table, ints(index(n, table.shape[0]))), {}

taken = refused = 0
for _ in range(int(sys.argv[2])):
    name, results, operands, attributes = [perceptron, perceptron, windows, rows][rng.integers(4)]()
    results = results if len(results) > 1 else results[0]
    try:
        jax.block_until_ready(jax.ffi.ffi_call(name, results)(*operands, **attributes))
        taken += 1
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        assert "rlx2_jax kernels: " in str(error), error
        refused += 1
print(taken, refused)
"""


@pytest.mark.slow
@pytest.mark.skipif(not native.instruction_sets(), reason="the native kernels were not built")
def test_kernels_refuse_nonsense_and_never_crash():
    """Random index arrays, sizes and offsets below the door that checks, in a process whose death is a failure."""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", NONSENSE, "0", "300"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    taken, refused = map(int, done.stdout.split())
    assert taken > 20 and refused > 20


# Files.


@pytest.mark.slow
def test_a_damaged_compilation_cache_changes_nothing(tmp_path):
    """Every file of it flipped, cut, emptied or replaced by noise: the run compiles anew, to the same result."""
    cache, rng = tmp_path / "cache", random.Random(0)
    flags = [*flags_of(small()), f"--compilation_cache={cache}"]
    rows = []
    for name in ("whole", "damaged"):
        code, said = finish(start("train.py", f"--workdir={tmp_path / name}", *flags))
        assert code == 0, said
        rows.append(without_clocks(files.read_json_lines(tmp_path / name / "metrics.jsonl")))
        kept = sorted(path for path in cache.rglob("*") if path.is_file())
        assert kept
        for k, path in enumerate(kept):
            data = bytearray(path.read_bytes()) or bytearray(1)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            path.write_bytes([bytes(data), data[: len(data) // 2], b"", rng.randbytes(len(data))][k % 4])
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_workdir_that_goes_away_ends_the_run_in_one_sentence(tmp_path):
    """Moved aside by somebody while the run goes on."""
    workdir = tmp_path / "run"
    config = small(total_steps=400_000, checkpoint_every=400)
    process = start("train.py", f"--workdir={workdir}", cached(), *flags_of(config))
    deadline = time.monotonic() + SECONDS
    while not list(workdir.glob("checksums/*.json")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    workdir.rename(tmp_path / "elsewhere")
    code, said = finish(process)
    assert code == 2, said
    assert "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_a_workdir_made_read_only_ends_the_run_in_one_sentence(tmp_path):
    """Like the one that goes away."""
    workdir = tmp_path / "run"
    process = start("train.py", f"--workdir={workdir}", cached(), *flags_of(small(total_steps=400_000)))
    while not (workdir / "metrics.jsonl").exists() and process.poll() is None:
        time.sleep(0.05)
    try:
        for path in [workdir, *workdir.rglob("*")]:
            path.chmod(0o500 if path.is_dir() else 0o400)
        code, said = finish(process)
    finally:
        for path in [workdir, *workdir.rglob("*")]:
            path.chmod(0o700)
    assert code == 2, said
    assert "Traceback" not in said


# Kills.

KILLED = """
import os, signal, sys

def kill_at(directory, count):
    "End this process before its file operation of that number under a directory."
    left = [count]

    def hook(event, arguments):
        if not event.startswith(("open", "os.", "shutil.")) or not arguments:
            return
        path = arguments[0]
        if isinstance(path, (str, os.PathLike)) and str(path).startswith(directory):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return left
"""


CHECKPOINTS = (
    KILLED
    + """
import json, shutil
from pathlib import Path
import numpy as np
from rlx2_jax.io.checkpoints import Checkpoints

# Nothing has begun a thread here: each case is a fork.
root = Path(sys.argv[1])
state = lambda step: {"x": np.full(3, step), "y": {"z": np.arange(5) + step}}
template = state(0)

def forked(function):
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        function()
        os._exit(0)
    except BaseException:
        import traceback
        traceback.print_exc()
        os._exit(1)

def begin():
    with Checkpoints(root / "begun", {}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, state(step), {"step": step})

def save(directory, count):
    shutil.copytree(root / "begun", directory)
    with Checkpoints(directory, {}) as checkpoints:
        left = kill_at(str(directory), count)
        checkpoints.save(3, state(3), {"step": 3})
        if count > 10**6:
            (root / "count").write_text(str(count - left[0]))

def restore(directory):
    with Checkpoints(directory, {}) as checkpoints:
        step, found, record = checkpoints.restore(template, lambda line: None)
        assert step in (2, 3) and record == {"step": step}, step
        np.testing.assert_array_equal(found["x"], np.full(3, step))
    with Checkpoints(directory, {}) as checkpoints:
        checkpoints.save(4, state(4), {"step": 4})
    with Checkpoints(directory, {}) as checkpoints:
        assert checkpoints.restore(template, lambda line: None)[0] == 4

assert forked(begin) == 0
assert forked(lambda: save(root / "whole", 10**7)) == 0
count = int((root / "count").read_text())
part, parts = int(sys.argv[2]), int(sys.argv[3])
for k in range(part, count, parts):
    directory = root / f"k{k}"
    assert forked(lambda: save(directory, k)) == -signal.SIGKILL, k
    assert forked(lambda: restore(directory)) == 0, k
print(count)
"""
)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(2))
def test_a_kill_at_any_file_operation_of_a_checkpoint_loses_none_that_was_there(tmp_path, part):
    """Before each open, mkdir, rename and removal in turn: the newest good one is whole, and a next one can be made."""
    done = subprocess.run(
        [sys.executable, "-c", CHECKPOINTS, str(tmp_path), str(part), "2"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=2 * SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 20


RUN = (
    KILLED
    + """
import json
from rlx2_jax.config import Config
from rlx2_jax.runtime import compilation
from rlx2_jax.training import train

directory, count, config, resume = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4] == "resume"
compilation.use_cache(sys.argv[5])
left = kill_at(directory, count)
train(Config.from_dict(config), directory, resume=resume, overwrite=not resume, show_progress=False)
print(count - left[0])
"""
)


def outcome(workdir):
    """What a run is, clocks apart: its rows and the bytes of its policies and masks."""
    rows = without_clocks(files.read_json_lines(workdir / "metrics.jsonl"))
    return rows, {path.name: path.read_bytes() for path in sorted(workdir.glob("*.npz"))}


@pytest.mark.slow
def test_a_kill_at_any_file_operation_of_a_run_changes_nothing_of_its_end(tmp_path):
    """Before one of its opens, renames and removals, drawn at random, and again when it is resumed."""
    config = json.dumps(small(checkpoint_every=400).to_dict())
    rng = random.Random(1)

    script = tmp_path / "run.py"
    script.write_text(RUN)

    def run(name, count, resume):
        how = "resume" if resume else "fresh"
        return finish(Fork(script, tmp_path / name, count, config, how, jax.config.jax_compilation_cache_dir))

    code, said = run("whole", 10**9, False)
    assert code == 0, said
    operations = int(said.split()[-1])
    for k in range(2):
        kills = 0
        while True:
            saved = any((tmp_path / f"k{k}" / "checksums").glob("*.json"))
            count = rng.randrange(operations) if kills < 2 else 10**9
            code, said = run(f"k{k}", count, saved)
            if code == 0:
                break
            assert code == -signal.SIGKILL, said[-2000:]
            kills += 1
        assert outcome(tmp_path / f"k{k}") == outcome(tmp_path / "whole")


def rows_written(workdir):
    """Lines of all runs of a sweep: how far it has come, however fast the machine is."""
    return sum(path.read_bytes().count(b"\n") for path in workdir.glob("runs/*/metrics.jsonl"))


@pytest.mark.slow
def test_a_sweep_killed_at_random_moments_ends_as_if_undisturbed(tmp_path):
    """Two runs of sixteen rows in one program, five kills: the same bytes in the table and in every policy."""
    config = small(total_steps=16_000, checkpoint_every=1000, eval_every=1000)
    given = flags_of(config)
    flags = [f for f in given if not f.startswith(("--method=", "--seed="))]
    command = ("sweep.py", *flags, "--methods=set,rlx2", "--seeds=1", cached())
    code, said = finish(start(*command, f"--workdir={tmp_path / 'whole'}"))
    assert code == 0, said
    killed, rng = tmp_path / "killed", random.Random(2)
    for _ in range(5):
        enough, deadline = rows_written(killed) + rng.randint(1, 2), time.monotonic() + SECONDS
        process = start(*command, f"--workdir={killed}")
        while rows_written(killed) < enough and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        finish(process)
    assert 0 < rows_written(killed) < rows_written(tmp_path / "whole")
    code, said = finish(start(*command, f"--workdir={killed}"))
    assert code == 0, said
    of_runs = (f"runs/*/{name}.npz" for name in ("policy", "policy_best", "masks", "topology"))
    for name in ("sweep.csv", "sweep.json", *of_runs):
        found, expected = (sorted((tmp_path / where).glob(name)) for where in ("killed", "whole"))
        assert len(found) == len(expected) > 0
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.read_bytes() == theirs.read_bytes(), ours


def test_kernels_give_many_threads_what_they_give_one():
    """All doors at once, from Python threads that share nothing but the pool of helpers."""
    from rlx2_jax import kernels
    from rlx2_jax.networks import forms
    from tests.test_kernels import random_network

    params, mask, counts = random_network(1, (7, 64, 3), 0.3)
    links = forms.links_of(mask, counts)
    vector = forms.pack(params, links)
    table = jnp.arange(4000.0).reshape(1000, 4)

    @jax.jit
    def work(seed):
        key = kernels.fast_key(jax.random.PRNGKey(seed))
        x = jax.random.normal(key, (300, 7))
        gradient = jax.grad(lambda v: jnp.sin(kernels.perceptron(v, links, x)).sum())(vector)
        moved, _ = kernels.adam_step(vector, gradient, kernels.ADAM.init(vector), 0.1)
        return moved, kernels.take_rows(table, jax.random.randint(key, (5000,), 0, 1000))

    serial = [jax.device_get(work(seed)) for seed in range(8)]
    wrong = []

    def check(seed):
        for turn in range(4):
            mine = (seed + turn) % 8
            same = jax.tree.map(np.array_equal, jax.device_get(work(mine)), serial[mine])
            if not all(jax.tree.leaves(same)):
                wrong.append(mine)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
