"""The benchmark of environments: whom it compares, and what it writes."""

import json
import runpy
import types

import jax
import numpy as np
import pytest
from absl import flags

from rlx2_jax.envs import gym
from tests.conftest import ROOT, launch, launch_here, own_settings
from tests.test_launchers import assert_refused

LAUNCHER = "benchmark_env.py"
TINY = ("--tasks=InvertedPendulum-v4", "--num_envs=2", "--steps=5", "--seconds=0", "--output=out/speed.json")


def test_the_loop_over_mujocos_batch_makes_our_simulations_bit_by_bit():
    with own_settings():
        benchmark = types.SimpleNamespace(**runpy.run_path(str(ROOT / "experiments" / LAUNCHER)))
        flags.FLAGS(["", "--num_envs=3", "--steps=50"])
        env = gym.load("Hopper-v4", "mujoco")
        vector = benchmark._many(env)
        start = benchmark._begun(vector)
        loop = benchmark.Loop(env, vector, start)
        after, (_, (ages, _)) = jax.jit(lambda state: benchmark.steps(vector, state))(start)
    assert (ages == 0).sum() > 3  # Episodes end, and begin anew.
    for _ in range(2):
        loop()
        for name, values in benchmark.fields(env.task.model, np.asarray(after.current.physics)).items():
            np.testing.assert_array_equal(getattr(loop.batch, name), values)


def test_it_says_and_writes_what_it_found(tmp_path):
    done = launch_here(LAUNCHER, *TINY, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("2 environments, blocks of 5 steps", "steps/s", "load of the machine", "wrote out/speed.json"):
        assert word in done.stdout
    written = json.loads((tmp_path / "out" / "speed.json").read_text())
    assert {"command", "commit", "device", "versions", "num_envs", "steps", "threads", "load"} < set(written)
    ours, batch = written["results"]
    assert [ours["contestant"], batch["contestant"]] == ["rlx2", "batch"]
    for result in (ours, batch):
        low, high = result["steps_per_second_quartiles"]
        assert 0 < low <= result["steps_per_second"] <= high
        assert result["n"] >= 5
    assert (ours["ours_over_it"], ours["ours_over_it_quartiles"]) == (1, [1, 1])
    assert (tmp_path / "out" / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_start_of_a_process_is_timed_for_every_contestant(tmp_path):
    done = launch(LAUNCHER, *TINY, "--against=batch,brax", "--cold", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "out" / "speed.json").read_text())["results"]
    assert [result["contestant"] for result in results] == ["rlx2", "batch", "brax"]
    assert all(result["import_seconds"] > 0 and result["compile_seconds"] > 0 for result in results)


REFUSED = {
    "--tasks=hopper": "unknown tasks ['hopper']; valid: HalfCheetah-v4, ",
    "--tasks=": "nothing to measure; name tasks with --tasks.",
    "--against=gym": "unknown against ['gym']; valid: batch, brax.",
    "--num_envs=0": "num_envs=0: use 1 to 100,000.",
    "--steps=1000000": "steps=1000000: use 1 to 100,000.",
    "--tasks=Swimmer-v4 --against=brax": "Brax has no Swimmer-v4; leave it out of --tasks, or brax out of --against.",
    "--output=speed.txt": "output=speed.txt: name a file that ends with .json.",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_measured_is_refused(arguments, tmp_path):
    assert_refused(launch_here(LAUNCHER, *arguments.split(), cwd=tmp_path), REFUSED[arguments])
    assert list(tmp_path.iterdir()) == []
