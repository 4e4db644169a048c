"""A whole sweep in this process: one compilation, each run its own result and files, and resumes."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from rlx2_jax import policies
from rlx2_jax.config import METHODS
from rlx2_jax.errors import DivergedError, WorkdirError
from rlx2_jax.io import files, lock
from rlx2_jax.networks import masking
from rlx2_jax.policies import history, tickets
from rlx2_jax.sweeps import plans, product, sweep, worker, workers
from rlx2_jax.sweeps import table as sweep_table
from rlx2_jax.training import programs, train
from rlx2_jax.training.display import Display
from tests.conftest import small

CLOCKS = ("_second", "_seconds")


def quiet(configs, workdir, **options):
    return sweep(configs, workdir, show_progress=False, **options)


def count_traces(monkeypatch):
    """Makes `make_program` count how often each chunk is traced."""
    traces = []
    original = programs.make_program

    def counting(config):
        program = original(config)

        def chunk(*arguments):
            traces.append(program.config.env)
            return program.chunk(*arguments)

        return program._replace(chunk=chunk)

    monkeypatch.setattr("rlx2_jax.sweeps.plans.make_program", counting)
    return traces


def table(workdir):
    with open(workdir / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def rows_of(workdir, name):
    rows = files.read_json_lines(workdir / "runs" / name / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.endswith(CLOCKS)} for row in rows]


def links(policy):
    return {layer: np.asarray(leaves["kernel"]) != 0 for layer, leaves in policy.params.items()}


@pytest.fixture(scope="module")
def column(tmp_path_factory):
    """A column of a table, six methods by four seeds: workdir, result, traces of the chunk."""
    workdir = tmp_path_factory.mktemp("column")
    with pytest.MonkeyPatch.context() as patch:
        traces = count_traces(patch)
        result = quiet(product(small(), methods=list(METHODS), seeds=range(4)), workdir)
    return workdir, result, traces


def test_twenty_four_runs_are_one_compilation(column):
    workdir, result, traces = column
    assert result.finished
    assert traces == ["probe/action"]
    plan = json.loads((workdir / "plan.json").read_text())
    assert plan["compilations"] == {"planned": 1, "happened": 1}
    assert [len(batch["runs"]) for batch in plan["batches"]] == [24]
    assert plan["batches"][0]["bytes_per_device"] == 24 * plan["batches"][0]["bytes_per_row"]


@pytest.mark.parametrize("method", METHODS)
def test_each_run_is_what_it_is_alone(column, method):
    """Masks exactly, values to rounding: products of a batch are summed in another order than those of one run."""
    workdir, result, _ = column
    name = next(run.name for run in result.plan.runs if run.config.method == method and run.config.seed == 2)
    alone = train(small(method=method, seed=2), show_progress=False)
    found = rows_of(workdir, name)
    assert len(found) == len(alone.rows) == 3
    for row, other in zip(found, alone.rows, strict=True):
        assert set(row) == {k for k in other if not k.endswith(CLOCKS)}
        for key, value in row.items():
            if isinstance(value, int):
                assert value == other[key], key
            elif value is not None:
                assert value == pytest.approx(other[key], rel=1e-3, abs=1e-4), key
    policy = policies.load(workdir / "runs" / name / "policy.npz")
    for layer, mask in links(policy).items():
        np.testing.assert_array_equal(mask, links(alone.policy)[layer])
        np.testing.assert_allclose(
            policy.params[layer]["kernel"], alone.policy.params[layer]["kernel"], rtol=1e-3, atol=1e-5
        )


def test_each_run_leaves_what_a_single_run_leaves(column):
    workdir, result, _ = column
    for run in result.plan.runs:
        directory = workdir / "runs" / run.name
        expected = {
            "config.json",
            "metrics.jsonl",
            "policy.npz",
            "policy_best.npz",
            "summary.json",
            "curve.png",
            "masks.npz",
            "topology.npz",
        }
        assert {path.name for path in directory.iterdir()} == expected | {"tensorboard"}
        summary = json.loads((directory / "summary.json").read_text())
        assert summary["finished"]
        assert summary["env_steps"] == 1200
        assert summary["updates"] == 1000
        assert json.loads((directory / "config.json").read_text()) == run.config.to_dict() | {"hidden": [16, 16]}
        kept, ends = history.load(directory), tickets.load(directory)
        assert kept.steps == ((0,) if run.config.topology == "fixed" else (0, 400, 800, 1200))
        for network, tree in ends.final.items():
            for found, mask in zip(kept.masks(-1, network), masking.kernels(tree), strict=True):
                np.testing.assert_array_equal(found, mask)
        about = policies.load(directory / "policy.npz").about
        assert about["config"]["seed"] == run.config.seed
        assert about["env_steps"] == 1200
    assert not (workdir / "batches" / "batch-0" / "checkpoints").exists()


def test_the_table_has_a_row_per_run(column):
    workdir, result, _ = column
    lines = table(workdir)
    assert len(lines) == 24
    assert list(lines[0])[:8] == [
        "env", "agent", "method", "actor_sparsity", "critic_sparsity", "seed", "score", "best",
    ]  # fmt: skip
    for line, run in zip(lines, result.plan.runs, strict=True):
        summary = json.loads((workdir / "runs" / run.name / "summary.json").read_text())
        assert line["method"] == run.config.method
        assert float(line["score"]) == summary["score"]
        assert float(line["best"]) == summary["best"]
        assert line["finished"] == "True"
    assert json.loads((workdir / "sweep.json").read_text()) == result.table


def test_the_same_sweep_again_repeats_nothing(column):
    workdir, result, _ = column
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("runs/*/*.npz")}
    again = quiet([run.config for run in result.plan.runs], workdir)
    assert again.finished
    assert again.table == result.table
    assert again.plan.compiled == 1
    assert {path: path.stat().st_mtime_ns for path in workdir.glob("runs/*/*.npz")} == before


SHORT = {"total_steps": 600, "eval_every": 200, "checkpoint_every": 200}


@pytest.mark.parametrize("parallel", ["shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_batches_that_do_not_fit_at_once_follow_one_another_in_one_compilation(tmp_path, monkeypatch, parallel):
    configs = product(small(**SHORT), methods=["set", "rlx2"], seeds=range(3))[1:]
    traces = count_traces(monkeypatch)
    split = quiet(configs, tmp_path, runs_per_device=2, parallel=parallel)
    assert split.finished
    assert [len(batch.runs) for batch in split.plan.batches] == [2, 2, 1]
    assert {batch.rows for batch in split.plan.batches} == {2}, "the last is filled up with a copy"
    assert len(traces) == split.plan.compiled == split.plan.compilations == 1
    assert all(line["env_steps"] == 600 and line["finished"] for line in split.table)
    assert len({line["score"] for line in split.table}) == 5


def test_a_run_has_its_own_buffer_whichever_batch_it_is_in(tmp_path):
    configs = product(small(**SHORT, method="dense"), fields={"buffer_max": [200, 600]})
    split = quiet(configs, tmp_path / "both", runs_per_device=1)
    assert [len(batch.runs) for batch in split.plan.batches] == [1, 1]
    kept = [rows_of(tmp_path / "both", run.name)[-1]["replay_size"] for run in split.plan.runs]
    assert kept == [200, 600]


@pytest.mark.parametrize("parallel", ["shard_map", "processes"])
def test_a_second_sweep_is_kept_out_of_a_directory(tmp_path, parallel, monkeypatch):
    hold = lock.hold
    monkeypatch.setattr(lock, "hold", lambda directory: hold(directory, 0.0))
    with hold(tmp_path), pytest.raises(WorkdirError, match="in use by another process"):
        quiet(product(small(**SHORT)), tmp_path, parallel=parallel)


@pytest.mark.slow
def test_pmap_is_another_spelling_of_shard_map(tmp_path):
    configs = product(small(**SHORT), methods=["set", "rlx2"], seeds=range(3))[1:]
    ways = ("shard_map", "pmap")
    tables = [quiet(configs, tmp_path / way, runs_per_device=2, parallel=way).table for way in ways]
    assert tables[0] == tables[1]


def test_a_worker_that_crashes_has_not_diverged_and_takes_no_module_of_where_it_starts(tmp_path):
    for name in ("json", "typing", "random", "jax"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of a person')")
    command = [sys.executable, "-P", "-c", workers.BOOT, str(workers.PACKAGE.parent)]
    crashed = subprocess.run(command, input=b"{}", capture_output=True, cwd=tmp_path)
    assert b"KeyError: 'argv'" in crashed.stderr
    assert crashed.returncode not in (0, workers.DIVERGED, workers.REFUSED)


def test_a_workers_run_that_diverged_is_done_for_good(tmp_path, monkeypatch):
    order = {
        "config": small().to_dict(),
        "workdir": str(tmp_path),
        "teacher": None,
        "cores": [*os.sched_getaffinity(0)],
        "argv": sys.argv,
        "path": sys.path,
        "env": small().env,
    }
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(order | {"cache": None}) + "\n"))
    monkeypatch.setattr(worker, "_follow_parent", lambda: None)
    monkeypatch.setattr(worker, "use_cache", lambda cache: None)
    monkeypatch.setattr(worker, "train", mock.Mock(side_effect=DivergedError("diverged.")))
    code = worker.main()
    assert code == workers.DIVERGED
    laid_out = plans.lay_out(product(small()), parallel="processes")
    display = mock.Mock(Display)
    watch = workers._Watch(laid_out, tmp_path, display, None)
    (run,) = laid_out.runs
    assert not watch.done(run.name)
    assert watch.ended(workers.End(workers.Task(run.name, run.config, watch.directory(run.name)), code, "diverged"))
    assert watch.lines[0]["diverged"]
    display.say.assert_called_once_with(f"{run.name}: diverged; 1 of 1 runs are done")
    # And at the next start.
    assert workers._Watch(laid_out, tmp_path, Display(1, False), None).done(run.name)


def test_a_tables_score_is_the_mean_of_the_last_evaluations(tmp_path):
    laid_out = plans.lay_out(product(small(score_evaluations=2)))
    rows = [{"env_steps": 400 * k, "return_mean": float(k), "nonfinite": 0} for k in (1, 3, 2)]
    (found,) = sweep_table.lines(laid_out, {laid_out.runs[0].name: sweep_table.Standing(rows)})
    assert (found["score"], found["best"], found["last"]) == (2.5, 3, 2)


def test_a_run_that_diverges_is_marked_and_the_others_go_on(tmp_path):
    configs = product(small(**SHORT), seeds=[1], fields={"critic_lr": [3e-4, 1e30]})
    result = quiet(configs, tmp_path, fields=("critic_lr",))
    assert result.finished
    for line in table(tmp_path):
        bad = float(line["critic_lr"]) > 1
        assert line["diverged"] == str(bad)
        assert line["finished"] == str(not bad)
        assert int(line["env_steps"]) == (200 if bad else 600)
    again = quiet(configs, tmp_path, fields=("critic_lr",))
    assert again.table == result.table


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_stopped_sweep_goes_on_where_it_was_and_ends_with_the_same_table(tmp_path, number):
    runs = lambda every: product(small(total_steps=4000, checkpoint_every=every), methods=["dense", "rlx2"], seeds=[1])
    configs, told = runs(200), []

    def stop_once(plan, lines):
        if lines[0]["env_steps"] and not told:
            told.append(lines[0]["env_steps"])
            signal.raise_signal(number)

    stopped = quiet(configs, tmp_path / "stopped", on_table=stop_once)
    assert not stopped.finished
    assert all(line["env_steps"] < 4000 and not line["finished"] for line in stopped.table)
    first, second = (tmp_path / "stopped" / "runs" / run.name / "metrics.jsonl" for run in stopped.plan.runs)
    first.unlink()
    second.write_bytes(second.read_bytes() * 2)
    resumed = quiet(runs(1000), tmp_path / "stopped")  # How often a run is saved makes it no other run.
    whole = quiet(configs, tmp_path / "whole")
    assert resumed.finished
    assert {run.config.checkpoint_every for run in resumed.plan.runs} == {1000}
    assert resumed.table == whole.table
    assert (tmp_path / "stopped" / "sweep.csv").read_bytes() == (tmp_path / "whole" / "sweep.csv").read_bytes()
    for run in whole.plan.runs:
        assert rows_of(tmp_path / "stopped", run.name) == rows_of(tmp_path / "whole", run.name)


def test_a_sweep_is_extended_and_what_it_had_stays(tmp_path):
    first = quiet(product(small(**SHORT), seeds=[0, 1]), tmp_path)
    second = quiet(product(small(**SHORT), seeds=[0, 1, 2]), tmp_path)
    assert second.finished
    assert second.table[:2] == first.table
    assert second.table[2]["seed"] == 2
    with pytest.raises(WorkdirError, match="2 runs that these flags leave out"):
        quiet(product(small(**SHORT), seeds=[2]), tmp_path)
