"""The host loop with real files, real signals and real processes: what a run leaves, and exact resumes."""

import asyncio
import dataclasses
import functools
import io
import json
import math
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs, networks, policies
from rlx2_jax.config import resolve
from rlx2_jax.errors import CheckpointError, ConfigError, DivergedError, WorkdirError
from rlx2_jax.io import files
from rlx2_jax.io.checkpoints import Checkpoints
from rlx2_jax.networks.structure import templates
from rlx2_jax.runtime import compilation, memory
from rlx2_jax.training import programs, train, workdirs
from rlx2_jax.training.loggers import Run
from rlx2_jax.training.loggers.tensorboard import TensorBoard
from rlx2_jax.training.record import Record, Totals, plain_row
from rlx2_jax.training.workdirs import identity
from tests.conftest import ROOT, launch_here, own_settings, small

LAUNCHER = ROOT / "experiments" / "train.py"


def quiet(config, workdir=None, **options):
    return train(config, workdir, show_progress=False, **options)


def final_state(workdir, config):
    """The newest checkpoint of a run, as arrays on the host."""
    program = programs.make_program(config)
    template = jax.eval_shape(programs.unpack, jax.eval_shape(program.init, jax.random.PRNGKey(0), program.hparams))
    with Checkpoints(workdir, identity(program.config)) as checkpoints:
        step, state, _ = checkpoints.restore(template, warn=pytest.fail)
    return step, jax.device_get(state)


def without_clocks(rows):
    return [{k: v for k, v in row.items() if not k.endswith(("_second", "_seconds"))} for row in rows]


def flags_of(config):
    plain = {k: v for k, v in config.to_dict().items() if v is not None}
    return [f"--{k}={','.join(map(str, v)) if isinstance(v, list) else v}" for k, v in plain.items()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole uninterrupted run: workdir and result."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, quiet(small(), workdir)


def test_a_run_leaves_what_it_promises(finished):
    workdir, result = finished
    config = resolve(small())
    assert json.loads((workdir / "config.json").read_text()) == json.loads(json.dumps(config.to_dict()))
    rows = files.read_json_lines(workdir / "metrics.jsonl")
    assert [row["env_steps"] for row in rows] == [400, 800, 1200]
    expected = {"env_steps", "updates", "return_mean", "return_std", "critic_loss", "actor_loss", "q_mean"}
    expected |= {"actor_sparsity", "critic_sparsity", "links_dropped", "links_grown", "policy_distance"}
    expected |= {"replay_size", "n_step", "nonfinite", "steps_per_second", "updates_per_second"}
    assert all(expected <= set(row) for row in rows)
    assert rows[-1]["updates"] == 1000
    assert rows[0]["n_step"] == 1
    assert rows[-1]["n_step"] == 3
    assert rows[0]["links_dropped"] == rows[0]["links_grown"] > 0
    assert abs(rows[-1]["actor_sparsity"] - 0.9) < 0.01
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["score"] == pytest.approx(np.mean([row["return_mean"] for row in rows]))
    assert summary["best"] == max(row["return_mean"] for row in rows)
    assert summary["finished"] is True
    assert 0 < summary["size_ratio"] < 0.2
    for name in ("flops_train_ratio", "flops_test_ratio", "updates_per_second", "wall_seconds"):
        assert summary[name] > 0
    assert {"jax", "flax", "brax", "rlx2-jax"} <= set(summary["versions"])
    assert (workdir / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert any(p.stat().st_size > 500 for p in (workdir / "tensorboard").iterdir())
    assert result.summary["score"] == summary["score"]


def test_tensorboard_is_written_by_the_caller_and_hides_what_is_made_again(tmp_path, monkeypatch):
    """No thread, which a clock that was set or a full disk could end unseen."""
    from tensorboardX.event_file_writer import EventsWriter

    before, noted = threading.active_count(), []
    monkeypatch.setattr(time, "time", lambda: 1e9 if len(noted) % 2 else 1.0)
    write = EventsWriter.write_event
    monkeypatch.setattr(EventsWriter, "write_event", lambda self, event: noted.append(event) or write(self, event))
    for steps in (0, 400):
        events = TensorBoard(Run.of(resolve(small()), tmp_path, steps, print))
        events.log({"env_steps": steps + 400, "return_mean": 2.5}, steps + 400)
        events.flush()
        events.close()
    assert threading.active_count() == before
    assert [event.step for event in noted if event.HasField("session_log")] == [401]
    points = [(event.step, value.tag, value.simple_value) for event in noted for value in event.summary.value]
    assert points == [(400, "return_mean", 2.5), (800, "return_mean", 2.5)]


@pytest.mark.parametrize("how", ["thread", "loop"])
def test_a_run_may_be_called_from_a_thread_or_within_a_running_loop(finished, tmp_path, how):
    """Where there are no signals to catch, and where a checkpoint cannot begin a loop of its own."""
    workdir = tmp_path / "a workdir with spaces"

    async def in_loop():
        return quiet(small(), workdir) if how == "loop" else await asyncio.to_thread(quiet, small(), workdir)

    result = asyncio.run(in_loop())
    assert without_clocks(result.rows) == without_clocks(finished[1].rows)
    assert final_state(workdir, small())[0] == 1200


def test_a_copy_of_a_run_goes_on_through_a_link_as_the_run_itself(finished, tmp_path):
    def save(self, step, *rest, save=Checkpoints.save):
        save(self, step, *rest)
        os.kill(os.getpid(), signal.SIGTERM)

    with mock.patch.object(Checkpoints, "save", save):
        assert not quiet(small(checkpoint_every=400), tmp_path / "first").finished
    shutil.copytree(tmp_path / "first", tmp_path / "a copy")
    (tmp_path / "link").symlink_to("a copy", target_is_directory=True)
    resumed = quiet(small(checkpoint_every=400), tmp_path / "link", resume=True)
    assert resumed.finished
    assert without_clocks(resumed.rows) == without_clocks(finished[1].rows)
    assert without_clocks(files.read_json_lines(tmp_path / "a copy" / "metrics.jsonl")) == without_clocks(resumed.rows)
    assert len(files.read_json_lines(tmp_path / "first" / "metrics.jsonl")) == 1


def test_a_record_keeps_the_best_policy_and_scores_the_last_evaluations(finished, tmp_path):
    config = resolve(small(score_evaluations=2))
    workdirs.prepare(tmp_path, config, resume=False, overwrite=False)
    record = Record(config, programs.make_program(config).env, tmp_path)
    record.open(0)
    for k, mean in enumerate((1.0, 3.0, 2.0), 1):
        filled = jax.tree.map(lambda x, mean=mean: jnp.full_like(x, mean), finished[1].policy.params)
        record.add({"env_steps": 400 * k, "return_mean": mean}, filled)
    biases = [policies.load(tmp_path / name).params["Dense_0"]["bias"][0] for name in ("policy.npz", "policy_best.npz")]
    assert biases == [2, 3]
    summary = record.close(Totals(1200, 1000, 0, 1.0, 1.0, 1.0, {}), finished=True)
    assert (summary["score"], summary["score_evaluations"], summary["best"]) == (2.5, 2, 3)


def test_the_policy_file_acts_as_the_trained_agent(finished):
    workdir, result = finished
    loaded = policies.load(workdir / "policy.npz")
    chex.assert_trees_all_equal(loaded.params, jax.device_get(result.policy.params))
    observation = np.linspace(-1, 1, 5, dtype=np.float32)[:, None]
    agent = programs.make_program(small()).agent
    expected = agent.act(networks.MLP((16, 16, 1)).apply({"params": result.policy.params}, observation))
    np.testing.assert_allclose(loaded.act(observation), expected, atol=1e-6)
    assert loaded.about["env_steps"] == 1200


def test_each_program_is_traced_once_per_run(monkeypatch):
    calls = []
    original = programs.make_program

    def counting(config):
        program = original(config)

        def chunk(*arguments):
            calls.append("chunk")
            return program.chunk(*arguments)

        return program._replace(chunk=chunk)

    monkeypatch.setattr(programs, "make_program", counting)
    quiet(small())
    assert calls == ["chunk"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_and_resumed_run_is_bit_identical_to_an_uninterrupted_one(finished, tmp_path, number):
    # It stops at 600 steps, between two evaluations, where tallies are half full; 300 steps are no whole chunks.
    config = small(checkpoint_every=300)
    saved = []

    def save(self, step, *rest, save=Checkpoints.save):
        save(self, step, *rest)
        saved.append(step)
        if step == 600:
            os.kill(os.getpid(), number)

    with mock.patch.object(Checkpoints, "save", save):
        stopped = quiet(config, tmp_path)
    assert saved == [400, 600]
    assert not stopped.finished
    assert stopped.summary["env_steps"] == 600
    config = small()  # How often a run is saved makes it no other run.
    resumed = quiet(config, tmp_path, resume=True)
    assert resumed.finished
    workdir, whole = finished
    for (path, a), (_, b) in zip(
        *(jax.tree_util.tree_leaves_with_path(final_state(path, config)) for path in (tmp_path, workdir)), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
    assert without_clocks(files.read_json_lines(tmp_path / "metrics.jsonl")) == without_clocks(whole.rows)
    assert (tmp_path / "topology.npz").read_bytes() == (workdir / "topology.npz").read_bytes()
    # Its clocks go on, too.
    assert resumed.rows[-1]["wall_seconds"] > resumed.rows[0]["wall_seconds"]
    assert resumed.summary["wall_seconds"] > stopped.summary["wall_seconds"]


@pytest.mark.parametrize(
    ("number", "code", "env"),
    [
        pytest.param(signal.SIGKILL, -signal.SIGKILL, "Hopper-v4", marks=pytest.mark.slow),
        (signal.SIGTERM, 1, "probe/action"),
    ],
)
def test_a_killed_process_loses_at_most_the_steps_since_its_last_checkpoint(tmp_path, number, code, env):
    config = small(env=env, checkpoint_every=400, total_steps=4800, evolve_interval=400, seed=3)

    def command(workdir, *more):
        cache = f"--compilation_cache={jax.config.jax_compilation_cache_dir}"
        return [sys.executable, str(LAUNCHER), f"--workdir={workdir}", cache, *flags_of(config), *more]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(killed), stderr=subprocess.PIPE)
    deadline = time.time() + 200
    while len(list(killed.glob("checksums/*.json"))) < 2 and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait() == code, process.stderr.read().decode()
    kept = max(int(p.stem) for p in killed.glob("checksums/*.json"))
    seen = files.read_json_lines(killed / "metrics.jsonl")
    assert seen[-1]["env_steps"] <= kept + config.checkpoint_every < config.total_steps
    if number == signal.SIGTERM:
        return  # That such a run goes on exactly is seen above, in this process.
    quiet(config, killed, resume=True)
    quiet(config, whole)
    rows = [without_clocks(files.read_json_lines(workdir / "metrics.jsonl")) for workdir in (killed, whole)]
    assert rows[0] == rows[1]
    assert (killed / "topology.npz").read_bytes() == (whole / "topology.npz").read_bytes()
    chex.assert_trees_all_equal(final_state(killed, config), final_state(whole, config))


def damage_flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [damage_flip, damage_truncate, lambda path: path.unlink()])
def test_a_damaged_checkpoint_gives_way_to_the_older_good_one(tmp_path, damage):
    config = small(checkpoint_every=400)
    whole = quiet(config, tmp_path)
    data = max((tmp_path / "checkpoints" / "1200").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    damage(data)
    resumed = quiet(config, tmp_path, resume=True)
    assert without_clocks(resumed.rows) == without_clocks(whole.rows)
    assert final_state(tmp_path, config)[0] == 1200


def test_hosts_wait_for_each_other_before_and_after_one_sets_a_checkpoint_aside(tmp_path):
    told = []
    with Checkpoints(tmp_path, {}) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"x": np.full(3, step)}, {})
    (tmp_path / "checksums" / "2.json").unlink()
    with Checkpoints(tmp_path, {}) as checkpoints:
        look = lambda name: told.append((name, (tmp_path / "rejected" / "2").exists()))
        assert checkpoints.restore({"x": np.zeros(3, int)}, lambda line: None, look)[0] == 1
    assert told == [("checkpoints compared", False), ("bad checkpoints set aside", True)]


def test_without_a_good_checkpoint_a_resume_is_refused_in_one_sentence(tmp_path):
    config = small(checkpoint_every=400)
    quiet(config, tmp_path)
    for data in (tmp_path / "checkpoints").rglob("*"):
        if data.is_file() and "ocdbt" in str(data):
            damage_flip(data)
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .*is damaged.*another workdir\.$"):
        quiet(config, tmp_path, resume=True)


def test_a_checkpoint_of_another_run_is_refused(finished, tmp_path):
    config = small(seed=5)
    quiet(config, tmp_path)
    for name in ("checkpoints", "checksums"):
        for path in (tmp_path / name).iterdir():
            os.rename(path, tmp_path / f"{path.name}.old")
        for path in (finished[0] / name).iterdir():
            os.symlink(path, tmp_path / name / path.name)
    with pytest.raises(CheckpointError, match=r"belongs to another run \(other seed\)"):
        quiet(config, tmp_path, resume=True)


def test_a_workdir_with_another_run_is_refused_unless_told_otherwise(finished, tmp_path):
    workdir, _ = finished
    with pytest.raises(WorkdirError, match=r"holds another run \(.*gamma=0.99 not 0.9"):
        quiet(small(gamma=0.9), workdir)
    with pytest.raises(WorkdirError, match="--resume"):
        quiet(small(), workdir)
    with pytest.raises(WorkdirError, match=r"another run \(gamma=0.99 not 0.9\); name another --workdir\.$"):
        quiet(small(gamma=0.9), workdir, resume=True)  # Who asks to go on is not told to replace.
    quiet(small(), tmp_path)
    replaced = quiet(small(gamma=0.9), tmp_path, overwrite=True)
    assert len(files.read_json_lines(tmp_path / "metrics.jsonl")) == len(replaced.rows)


def told(capsys, pattern):
    """The lines on standard error that match."""
    return [line for line in capsys.readouterr().err.splitlines() if re.search(pattern, line)]


@pytest.mark.parametrize("left", ["nothing", "half a checkpoint"])
def test_one_command_starts_a_run_and_goes_on_with_it(finished, tmp_path, left, capsys):
    workdir = tmp_path / "run"
    if left != "nothing":
        with workdirs.held(workdir, resolve(small()), resume=False, overwrite=False):
            shutil.copy(finished[0] / "metrics.jsonl", workdir)
        shutil.copytree(finished[0] / "checkpoints" / "1200", workdir / "checkpoints" / "400")
    result = train(small(), workdir, resume=True)
    assert told(capsys, f"nothing was saved in {workdir} yet; the run begins at its start")
    assert without_clocks(result.rows) == without_clocks(finished[1].rows)


def test_a_run_whose_checkpoints_are_gone_is_not_begun_again(finished, tmp_path):
    held = tmp_path / "held"
    shutil.copytree(finished[0], held)
    for name in ("checkpoints", "checksums"):
        shutil.rmtree(held / name)
    with pytest.raises(CheckpointError, match=r"holds a run whose checkpoints are gone; begin another --workdir\.$"):
        quiet(small(), held, resume=True)
    assert without_clocks(files.read_json_lines(held / "metrics.jsonl")) == without_clocks(finished[1].rows)


@pytest.mark.parametrize("what", ["deleted", "doubled"])
def test_a_resumed_run_has_its_history_from_its_checkpoint(finished, tmp_path, what, capsys):
    held = tmp_path / "held"
    shutil.copytree(finished[0], held)
    metrics = held / "metrics.jsonl"
    rows = files.read_json_lines(metrics)
    metrics.unlink() if what == "deleted" else metrics.write_bytes(metrics.read_bytes() * 2)
    result = train(small(), held, resume=True)
    assert told(capsys, "metrics.jsonl was not as the run had written it; it is put back as it was at step 1,200")
    assert result.rows == files.read_json_lines(metrics) == rows
    assert result.summary["score"] == finished[1].summary["score"]


def test_a_run_goes_on_with_its_own_settings_and_those_of_how_may_change(finished):
    workdir, own = finished[0], resolve(small())
    assert workdirs.resumed(workdir, {}) == own
    given = {name: value for name, value in vars(small()).items() if value is not None}
    assert workdirs.resumed(workdir, given) == own, "the same command goes on"
    assert workdirs.resumed(workdir, {"total_steps": 1000, "eval_every": 390}) == own, "it was rounded so, too"
    changed = workdirs.resumed(workdir, {"compute": "packed", "checkpoint_every": 77, "ticket": "elsewhere"})
    assert changed == dataclasses.replace(own, compute="packed", checkpoint_every=77, ticket="elsewhere")


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"gamma": 0.9}, "gamma=0.99 not 0.9"),
        ({"total_steps": 100}, "total_steps=1200 not 100"),
        ({"tau": 0.1, "method": "dense"}, "tau=0.005 not 0.1, method=rlx2 not dense, actor_sparsity=0.9 not 0.0"),
        ({"agent": "sac"}, "agent=td3 not sac"),
    ],
)
def test_what_a_person_set_is_named_before_what_follows_from_it(finished, given, named):
    with pytest.raises(WorkdirError, match=re.escape(f"holds another run ({named}")) as refused:
        workdirs.resumed(finished[0], given)
    assert "--overwrite" not in str(refused.value)


def test_what_a_stopped_run_says_to_go_on_with_works_when_pasted(tmp_path):
    settings = flags_of(small(checkpoint_every=300, total_steps=1000, eval_every=390))
    workdir = tmp_path / "it's a $HOME of runs"
    cache = f"--compilation_cache={jax.config.jax_compilation_cache_dir}"

    def save(self, step, *rest, save=Checkpoints.save):
        save(self, step, *rest)
        if step == 600:
            os.kill(os.getpid(), signal.SIGHUP)

    with mock.patch.object(Checkpoints, "save", save):
        stopped = launch_here("train.py", *settings, f"--workdir={workdir}", cache, cwd=tmp_path)
    assert stopped.returncode == 1
    assert "stopped by SIGHUP at step 600" in stopped.stderr
    rounded = "rounded to whole evaluations, chunks and iterations: total_steps=1,200 for 1,000, eval_every=400 for 390"
    assert rounded in stopped.stderr.splitlines()
    assert re.search(r"compiled in \d+ s, \d+ of them tracing \(chunk (cached|\d+ s), report ", stopped.stderr)
    takes = r"the run takes [\d.]+ [MG]B: [\d.]+ kB of state and [\d.]+ kB to compute with, "
    assert re.search(takes, stopped.stderr)
    (command,) = (line.partition(": ")[2] for line in stopped.stderr.splitlines() if line.startswith("go on with: "))
    _, script, *arguments = shlex.split(command)
    assert (script, arguments) == (str(LAUNCHER), ["--resume", f"--workdir={workdir}", cache])
    resumed = launch_here("train.py", *arguments, cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed at step 600" in resumed.stderr
    refused = launch_here("train.py", *arguments, "--gamma=0.5", cwd=tmp_path)
    assert refused.returncode == 2
    assert "holds another run (gamma=0.99 not 0.5); leave these out to go on, or name" in refused.stderr


def test_starts_at_the_same_moment_take_different_workdirs_and_leave_none_that_is_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with own_settings():
        claimed = runpy.run_path(str(LAUNCHER), run_name="launcher")["claimed"]
    with claimed(small()) as first, claimed(small()) as second:
        assert [path.name for path in (first, second)] == ["td3-probe-action-rlx2-0", "td3-probe-action-rlx2-0-2"]
        (second / "config.json").write_text("{}")
    assert [str(path) for path in tmp_path.rglob("*") if path.is_dir()] == [
        str(tmp_path / "runs"),
        str(tmp_path / second),
    ]


def test_who_waits_for_programs_to_be_compiled_looks_once_a_second_or_when_one_is_done():
    def chain(x, links):
        for link in range(links):
            x = jnp.sin(x @ x + link)
        return x

    said = []
    parts = {
        name: compilation.Part(jax.jit(functools.partial(chain, links=links)), (jax.ShapeDtypeStruct((8, 8), float),))
        for name, links in (("long", 300), ("short", 1))
    }
    began = time.monotonic()
    with own_settings():
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)  # Or it is read the next time.
        compiled, _ = compilation.compile_parts(parts, said.append)
    assert list(compiled) == ["long", "short"]
    assert len(said) <= 2 * len(parts) + (time.monotonic() - began) / compilation.LOOK_SECONDS


def test_what_a_program_takes_is_what_its_compiler_says_beside_the_process():
    program = jax.jit(lambda x: jnp.linalg.inv(x @ x), donate_argnums=0).lower(jnp.ones((100, 100))).compile()
    none, one = memory.need([]), memory.need([program])
    assert (none.arguments, none.temporaries) == (0, 0)
    assert one.arguments == 100 * 100 * 4
    assert one.temporaries >= one.arguments
    assert 50e6 < one.process <= one.peak


def test_what_a_process_held_most_is_at_least_what_it_holds():
    held = [jnp.ones(250_000)]
    for _ in range(200):
        held.append(held[-1] + 1)  # A little more at a time: Linux does not note that as a new peak at once.
        need = memory.need([])
        assert need.process <= need.peak


def test_a_state_that_does_not_fit_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(ConfigError, match=r"need .* but .* left; lower --buffer_max"):
        quiet(small(buffer_max=2_000_000_000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("agent", "compute"), [("td3", "masked"), ("sac", "packed")])
def test_windows_may_be_one_step_long(agent, compute):
    result = quiet(small(agent=agent, compute=compute, method="rigl", n_max=1, actor_sparsity=0.6, critic_sparsity=0.5))
    assert result.finished and np.isfinite(result.rows[-1]["critic_loss"])


def test_a_diverged_run_says_so_and_keeps_its_last_good_checkpoint(tmp_path):
    config = small(critic_lr=1e30, checkpoint_every=200)
    with pytest.raises(DivergedError, match=r"diverged between steps 200 and 400: .* step 200 is kept"):
        quiet(config, tmp_path)
    step, state = final_state(tmp_path, config)
    assert step == 200
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.agent))


def test_a_run_that_diverged_before_its_first_checkpoint_has_diverged_at_every_start(tmp_path):
    config = small(critic_lr=1e30)
    with pytest.raises(DivergedError, match=r"diverged between steps 200 and 400"):
        quiet(config, tmp_path)
    with pytest.raises(DivergedError, match=r"diverged before its first checkpoint; try smaller --critic_lr"):
        quiet(config, tmp_path, resume=True)


def test_the_best_policy_is_of_no_evaluation_that_was_forgotten(tmp_path):
    config, env = resolve(small()), envs.make("probe/action")
    workdirs.prepare(tmp_path, config, resume=False, overwrite=False)
    params = jax.tree.map(jnp.zeros_like, templates(config, env.observation_size, env.action_size)["actor"])

    def evaluated(begin, kept, *returns):
        record = Record(config, env, tmp_path, print)
        record.open(begin, kept)
        for steps, value in enumerate(returns, begin // 400 + 1):
            record.add({"env_steps": 400 * steps, "return_mean": value}, params)
        best = tmp_path / "policy_best.npz"
        about = policies.load(best).about if best.exists() else None
        return record.rows, about and (about["env_steps"], about["return_mean"])

    rows, best = evaluated(0, (), 3.0, 5.0, 4.0)
    assert best == (800, 5.0)
    assert evaluated(800, rows[:2], 4.0)[1] == (800, 5.0)
    assert evaluated(400, rows[:1])[1] is None, "one that is not made again yet"
    # From before the best one: what is evaluated again, and in another way comes out lower, takes its place.
    rows, _ = evaluated(0, (), 3.0, 5.0, 4.0)
    assert evaluated(400, rows[:1], 2.0, 1.0)[1] == (800, 2.0)
    assert evaluated(400, rows[:1], 5.0, 4.0)[1] == (800, 5.0)


def test_a_policy_whose_evaluation_is_not_finite_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("rlx2_jax.training.run.plain_row", lambda report: plain_row(report) | {"return_mean": math.nan})
    with pytest.raises(DivergedError, match="evaluated policy's actions or their rewards are no longer finite"):
        quiet(small(), tmp_path)
    assert files.read_json(tmp_path / "summary.json", {})["finished"] is False


def test_a_run_that_is_replaced_leaves_nothing(finished, tmp_path):
    held = tmp_path / "held"
    shutil.copytree(finished[0], held)
    workdirs.prepare(held, resolve(small(gamma=0.9)), resume=False, overwrite=True)
    assert {path.name for path in held.iterdir()} == {"config.json", ".lock"}


def test_non_finite_transitions_are_counted_and_the_run_goes_on():
    result = quiet(small(env="probe/fragile"))
    assert result.summary["nonfinite"] > 0
    assert result.finished


class Gone(io.StringIO):
    """Standard error that nobody reads any more."""

    def write(self, text):
        raise BrokenPipeError

    def flush(self):
        raise BrokenPipeError


def test_a_run_without_a_workdir_writes_nothing_and_needs_nobody_to_read_what_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", Gone())
    assert train(small()).finished
    assert list(tmp_path.iterdir()) == []
