"""Sweeps as a person types them: real processes on one and several hosts, killed and started again, and bad input."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from rlx2_jax import policies
from rlx2_jax.io import lock
from rlx2_jax.runtime import limits
from tests.conftest import ROOT, cached, launch, launch_here, shown
from tests.forks import Fork

TINY = (
    "--env=probe/action",
    "--hidden=16,16",
    "--batch_size=16",
    "--num_envs=4",
    "--total_steps=1200",
    "--eval_every=400",
    "--warmup_steps=200",
    "--chunk_steps=200",
    "--checkpoint_every=200",
    "--episode_length=10",
    "--eval_episodes=4",
    "--evolve_interval=50",
    "--n_step_delay=300",
)
RUNS = ("--methods=dense,rlx2", "--seeds=4")

BAD = {
    "--methods=magic": "unknown method 'magic'; valid: dense, ",
    "--seeds=some": "seeds=some: write 4 for the seeds 0 to 3",
    "--method=ss --methods=ss,set": "--method and --methods both say what method is; leave one out.",
    "--gamma=0.9 --sweep.gamma=0.8,0.9": "--gamma and --sweep.gamma both say what gamma is; leave one out.",
    "--sweep.env=ant": "--sweep.env has a flag of its own; use --envs.",
    "--sweep.gamma=high": "sweep.gamma=high: write numbers, separated by commas.",
    "--sweep.gamma=0.9,1.5": "gamma=1.5: use a number in [0, 1].",
    "--parallel=threads": "unknown parallel 'threads'; valid: shard_map, pmap, processes.",
    "--workers=2": "workers=2 says nothing to --parallel=shard_map; leave it out.",
    "--parallel=processes --workers=1000": "name one to as many.",
    "--parallel=processes --multihost": "--parallel=processes serves one host",
    "--heartbeat_timeout=5": "heartbeat_timeout=5 says nothing to a single host; add --multihost.",
    "--num_processes=2": "num_processes=2 says nothing to a single host; add --multihost.",
    "--multihost --coordinator_address=here": "coordinator_address=here: write host:port.",
    "--multihost": "no cluster to join",
    "--data_parallel=2": "data_parallel=2: a sweep gives each run to one device; leave it out",
    "--devices=3": "devices=3: there are 1; name one to as many.",
    "--workdir=/proc/nowhere": "workdir /proc/nowhere cannot be written",
    "--workdir=": "flag --workdir=: name a path, or leave the flag out",
    "--sweep.update_ratio=nan": "sweep.update_ratio=nan: write numbers, separated by commas.",
    "--sweep.ticket=,x": "sweep.ticket=,x: write words, separated by commas.",
}


@pytest.mark.parametrize("flags", BAD)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(flags, tmp_path):
    # To join a cluster is only for a process that has asked nothing of JAX yet.
    launched = launch if flags == "--multihost" else launch_here
    done = launched("sweep.py", *TINY, *flags.split(), cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert BAD[flags] in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_prints_the_plan_and_stops(tmp_path):
    done = launch_here(
        "sweep.py", *TINY, "--methods=dense,tiny,rlx2", "--agents=td3,sac", "--seeds=2", "--dry_run", cwd=tmp_path
    )
    assert done.returncode == 0
    first, *batches = done.stderr.splitlines()
    assert first == "12 runs, 2 batches on 1 device by shard_map, 2 compilations"
    assert [line.partition(":")[0] for line in batches] == ["batch-0 (program 0)", "batch-1 (program 1)"]
    assert "td3 on probe/action, 6 runs of dense, tiny, rlx2; 6 per device, " in batches[0]
    assert list(tmp_path.iterdir()) == []


def free_port():
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


STARTED: list[subprocess.Popen | Fork] = []


@pytest.fixture(autouse=True)
def _nothing_left_running():
    yield
    for process in STARTED:
        process.kill()
    STARTED.clear()


def start(workdir, *arguments, devices=1, typed=False):
    """A sweep in a process of its own, typed by a person or a fork of one that has imported all."""
    script = ROOT / "experiments" / "sweep.py"
    given = (*TINY, *RUNS, f"--workdir={workdir}", cached(), *arguments)
    if typed:
        process = subprocess.Popen(
            [sys.executable, str(script), *given],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": shown(devices)},
        )
    else:
        process = Fork(script, *given, PYTHONPATH=str(ROOT), XLA_FLAGS=shown(devices))
    STARTED.append(process)
    return process


def start_hosts(workdir, count, *arguments, devices=2):
    """The same sweep as several hosts on loopback; hosts that a person types are in `docs/sweeps.md`, which is run."""
    cluster = f"--multihost --coordinator_address=127.0.0.1:{free_port()} --num_processes={count}".split()
    each = [(*cluster, f"--process_id={k}", *arguments) for k in range(count)]
    return [start(workdir, *given, devices=devices) for given in each]


def end(process, code=0, seconds=300):
    """What a process said until it ended, with the given exit code."""
    _, said = process.communicate(timeout=seconds)
    assert process.returncode == code, said
    return said


def table(workdir):
    with open(workdir / "sweep.csv", newline="") as file:
        return list(csv.DictReader(file))


def wait_for(workdir, pattern, process):
    """Until a file is there."""
    deadline = time.time() + 200
    while not list(workdir.glob(pattern)) and process.poll() is None:
        assert time.time() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The sweep on one device."""
    workdir = tmp_path_factory.mktemp("single")
    end(start(workdir, typed=True))
    return workdir


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """The sweep on two hosts, and what they said."""
    workdir = tmp_path_factory.mktemp("two_hosts")
    return workdir, [end(process) for process in start_hosts(workdir, 2)]


def assert_same_results(workdir, other):
    """Masks exactly, values to rounding."""
    assert len(table(workdir)) == 8
    for line, expected in zip(table(workdir), table(other), strict=True):
        assert line.keys() == expected.keys()
        for name, value in line.items():
            if name in ("score", "best", "last"):
                assert float(value) == pytest.approx(float(expected[name]), abs=1e-3)
            else:
                assert value == expected[name]
        found, wanted = (policies.load(w / "runs" / line["run"] / "policy.npz").params for w in (workdir, other))
        for layer in wanted:
            kernel, other_kernel = (np.asarray(p[layer]["kernel"]) for p in (found, wanted))
            np.testing.assert_array_equal(kernel != 0, other_kernel != 0)
            np.testing.assert_allclose(kernel, other_kernel, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["shard_map", "pmap"])
def test_eight_devices_give_the_results_of_one(single, tmp_path, parallel):
    said = end(start(tmp_path, f"--parallel={parallel}", devices=8))
    assert "8 runs, 1 batch on 8 devices" in said
    assert "1 per device" in said
    assert_same_results(tmp_path, single)


@pytest.mark.slow
def test_devices_that_do_not_divide_the_runs_are_filled_up_or_refused(single, tmp_path):
    said = end(start(tmp_path / "filled", devices=3))
    assert "8 runs and 1 copy to fill up" in said
    assert_same_results(tmp_path / "filled", single)
    said = end(start(tmp_path / "refused", "--devices=3", devices=8), code=2)
    assert "3 devices do not divide the 8 runs" in said
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_several_hosts_give_the_results_of_one(single, two_hosts):
    workdir, said = two_hosts
    assert "on 4 devices" in said[0]
    assert not any("sweep of" in other for other in said[1:]), "one host speaks"
    assert_same_results(workdir, single)
    assert all((workdir / "runs" / line["run"] / "curve.png").exists() for line in table(workdir))


@pytest.mark.slow
def test_a_stopped_sweep_ends_with_the_same_table(single, tmp_path):
    process = start(tmp_path)
    wait_for(tmp_path, "batches/*/checksums/*.json", process)
    process.terminate()
    end(process, code=1)
    assert [line["finished"] for line in table(tmp_path)] == ["False"] * 8
    assert "resumed at step" in end(start(tmp_path))
    assert (tmp_path / "sweep.csv").read_bytes() == (single / "sweep.csv").read_bytes()


@pytest.mark.slow
def test_a_pmap_sweep_goes_on_over_other_devices(single, tmp_path):
    process = start(tmp_path, "--parallel=pmap", devices=4)
    wait_for(tmp_path, "batches/*/checksums/*.json", process)
    process.terminate()
    end(process, code=1)
    said = end(start(tmp_path, "--parallel=pmap", devices=2))
    assert "resumed at step" in said and "4 per device" in said
    assert_same_results(tmp_path, single)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_host_is_killed_the_others_stop_and_the_sweep_can_go_on(tmp_path, two_hosts, victim):
    whole, _ = two_hosts
    killed = tmp_path / "killed"
    processes = start_hosts(killed, 2)
    wait_for(killed, "batches/*/checksums/*.json", processes[0])
    processes[victim].kill()
    end(processes[victim], code=-signal.SIGKILL)
    _, said = processes[1 - victim].communicate(timeout=60)
    assert processes[1 - victim].returncode != 0
    assert "another host is gone" in said or "another task died" in said
    if victim:  # What is kept is the same, whichever host is lost.
        return
    again = start_hosts(killed, 2)
    assert "resumed at step" in end(again[0])
    end(again[1])
    assert (killed / "sweep.csv").read_bytes() == (whole / "sweep.csv").read_bytes()


@pytest.mark.slow
def test_a_host_that_is_asked_to_stop_stops_all_and_one_host_can_go_on_alone(single, tmp_path):
    processes = start_hosts(tmp_path, 2, "--total_steps=4000")
    wait_for(tmp_path, "batches/*/checksums/*.json", processes[0])
    processes[1].terminate()
    assert "stopped by another host" in end(processes[0], code=1)
    end(processes[1], code=1)
    assert "resumed at step" in end(start(tmp_path, "--total_steps=4000", devices=4))
    assert all(line["env_steps"] == "4000" and line["finished"] == "True" for line in table(tmp_path))


def test_a_coordinator_that_never_answers_is_waited_for_a_bounded_time(tmp_path):
    began = time.monotonic()
    process = start(
        tmp_path / "none", "--multihost", f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2",
        "--process_id=1", "--initialization_timeout=2", typed=True,
    )  # fmt: skip
    said = end(process, code=2)
    assert said.startswith("error: not all processes met at 127.0.0.1:")
    assert said.count("\n") == 1
    assert time.monotonic() - began < 55, "of the 62 that JAX would wait"
    assert not (tmp_path / "none").exists()


def test_hosts_with_unequal_numbers_of_devices_are_one_sentence(tmp_path):
    cluster = f"--multihost --coordinator_address=127.0.0.1:{free_port()} --num_processes=2".split()
    workdir = tmp_path / "none"
    processes = [start(workdir, *cluster, f"--process_id={k}", devices=2 - k) for k in range(2)]
    for process in processes:
        said = end(process, code=2).splitlines()
        assert said[-1] == (
            "error: the hosts have 2, 1 devices; give each as many, for instance with CUDA_VISIBLE_DEVICES."
        )
    assert not workdir.exists()


def test_a_port_in_use_is_one_sentence(tmp_path):
    with socket.socket(socket.AF_INET6) as holder:
        holder.bind(("::", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = start(
            tmp_path / "none", "--multihost", f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2",
            "--process_id=0", typed=True,
        )  # fmt: skip
        said = end(process, code=2)
    assert said == f"error: port {port} cannot be used (Address already in use); name another coordinator_address.\n"


WORKERS = f"--workers={min(2, len(limits.cores()))}"
PROCESSES = ("--parallel=processes", "--compute=packed", "--methods=ss,rlx2", "--seeds=1", WORKERS)


def workers_of(process):
    """Process ids of a sweep's workers."""
    found = subprocess.run(
        ["ps", "--ppid", str(process.pid), "-o", "pid=,args="], capture_output=True, text=True
    ).stdout
    return [int(match[1]) for match in re.finditer(r"^ *(\d+) \S*python\S* -P -c", found, re.MULTILINE)]


@pytest.mark.slow
def test_processes_share_plan_table_and_resume(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    said = end(start(whole, *PROCESSES))
    scores = {line["run"]: float(line["score"]) for line in table(whole)}
    assert all(f"{run}: score {score:.1f}; " in said for run, score in scores.items())
    assert "; 2 of 2 runs are done" in said
    assert [line["finished"] for line in table(whole)] == ["True", "True"]
    drawn = launch_here("plot.py", f"--workdirs={whole}", f"--output={tmp_path}/both.pdf")
    assert drawn.stdout == f"wrote {tmp_path}/both.pdf\n", drawn.stderr
    parent = start(killed, *PROCESSES, "--total_steps=1200")
    wait_for(killed, "runs/*/checksums/*.json", parent)
    parent.kill()
    end(parent, code=-signal.SIGKILL)
    with lock.hold(killed, patience=300):  # Workers without a parent end once they have compiled: here, not at once.
        pass
    parent = start(killed, *PROCESSES)
    while not (workers := workers_of(parent)):
        assert parent.poll() is None
        time.sleep(0.02)
    os.kill(workers[0], signal.SIGKILL)
    said = end(parent, code=1)
    assert "its worker was ended by SIGKILL; the same command continues the run" in said
    assert sorted(line["finished"] for line in table(killed)) == ["False", "True"]
    end(start(killed, *PROCESSES))
    assert (killed / "sweep.csv").read_bytes() == (whole / "sweep.csv").read_bytes()
