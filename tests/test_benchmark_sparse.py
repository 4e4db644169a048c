"""The benchmark of sparse training: what it writes, and what it refuses."""

import json

from .conftest import launch_here


def test_every_measurement_is_written_with_its_ratio(tmp_path):
    path = tmp_path / "sparse.json"
    done = launch_here("benchmark_sparse.py", "--sizes=0.002", "--seconds=0.05", "--batch=4", f"--output={path}")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())
    measured = {(line["what"], line["contestant"]): line for line in found["results"]}
    optimisers = ("dense", "static", "rigl", "instead")
    ratios = {(what, name) for what in ("update", "step") for name in optimisers}
    assert set(measured) == ratios | {("event", "in rigl"), ("event", "rewire")}
    assert all(line["n"] >= 5 and line["seconds"] > 0 for line in measured.values() if line["contestant"] != "in rigl")
    assert all(measured[name]["over_dense"] > 0 for name in ratios)
    assert found["threads"] >= 1


def test_what_cannot_be_measured_is_refused(tmp_path):
    for flag, sentence in (("--sparsity=1", "use a sparsity in [0, 1)"), ("--sizes=0,many", "use millions of weights")):
        done = launch_here("benchmark_sparse.py", flag, f"--output={tmp_path / 'sparse.json'}")
        assert done.returncode == 2
        assert sentence in done.stderr
