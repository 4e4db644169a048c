"""The benchmark of exported policies: what it measures of each form, and what it refuses."""

import json
import shutil

import pytest

from .conftest import launch_here


@pytest.mark.skipif(not shutil.which("gcc"), reason="gcc is not installed")
def test_every_form_is_measured_and_sparse_c_is_a_small_part_of_dense_c(tmp_path):
    path = tmp_path / "export.json"
    done = launch_here("benchmark_export.py", "--seconds=0.05", f"--output={path}")
    assert done.returncode == 0, done.stderr
    found = {line["contestant"]: line for line in json.loads(path.read_text())["results"]}
    in_c = {f"C {form} {level}" for form in ("dense", "sparse", "int8") for level in ("-Os", "-O3")}
    assert {*found} - {"ONNX Runtime"} == in_c | {"NumPy", "JAX"}
    assert all(line["n"] >= 5 and line["seconds"] > 0 for line in found.values())
    for name in in_c:
        line = found[name]
        weights = 69_120 if "dense" in name else 0
        assert line["host"]["read_only"] > 4 * weights
        if line["cortex_m4"]:
            assert line["cortex_m4"]["read_only"] == pytest.approx(line["host"]["read_only"], rel=0.1)
    # Two hidden layers of 256 and what registers take; less where units have gone.
    assert 4 * 512 <= found["C dense -Os"]["host"]["stack"] < 4 * 512 + 400
    for form in ("sparse", "int8"):
        line = found[f"C {form} -Os"]
        assert line["flash_over_dense"] < 0.08
        assert line["host"]["stack"] < found["C dense -Os"]["host"]["stack"]
    assert done.stdout.count("\nC ") == 6


def test_what_cannot_be_measured_is_refused(tmp_path, monkeypatch):
    output = f"--output={tmp_path / 'export.json'}"
    for flag, sentence in (
        ("--preset=chess", "unknown preset 'chess'"),
        (f"--workdir={tmp_path / 'none'}", "no policy at"),
    ):
        done = launch_here("benchmark_export.py", flag, output)
        assert done.returncode == 2
        assert sentence in done.stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    done = launch_here("benchmark_export.py", output)
    assert done.returncode == 2
    assert "there is no gcc" in done.stderr
