"""Studies from the command line, in small."""

import numpy as np
import pytest
from paper import STUDIES, store

from tests.conftest import cached, launch, launch_here


def smoke(study, tmp_path, *flags, run=launch):
    """A study in small, by its launcher."""
    given = (f"--study={study}", "--smoke", "--results=results", "--workdir=work", cached(), *flags)
    return run("reproduce.py", *given, cwd=tmp_path)


@pytest.mark.slow
def test_a_study_in_small_from_the_command_line_to_its_report_and_on(tmp_path):
    done = smoke("table2", tmp_path, run=launch_here)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "results" / "table2"
    kept = (directory / store.FILE).read_text()
    made = store.read(directory)
    assert sorted((run["arm"], run["seed"]) for run in made) == sorted(
        (arm, seed) for arm in ("dense", "tiny", "ss", "set", "rigl", "rlx2") for seed in (0, 1)
    )
    for run in made:
        assert run["env_steps"] == 1200
        assert run["evaluations"]["steps"] == [400, 800, 1200]
        assert run["score"] == pytest.approx(np.mean(run["evaluations"]["return_mean"]), rel=1e-5)
        assert run["provenance"]["command"] == "python experiments/reproduce.py --study=table2 --smoke"
        assert run["provenance"]["versions"]["jax"]
    # Nothing is made twice, wherever the runs' own files are; and the report needs nothing but what is kept.
    for flags in (["--workdir=elsewhere"], ["--report_only", "--workdir=elsewhere"]):
        text = (directory / "README.md").read_bytes()
        (directory / "README.md").unlink()
        again = smoke("table2", tmp_path, *flags, run=launch_here)
        assert again.returncode == 0, again.stderr
        assert (directory / "README.md").read_bytes() == text
        assert (directory / store.FILE).read_text() == kept
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "flags"),
    [
        *((name, ()) for name in STUDIES if name != "table2"),
        ("tickets", ("--parallel=processes", "--arms=dense,clone-dynamic,clone-winning")),
    ],
)
def test_every_other_study_in_small(study, flags, tmp_path):
    # Here, but one: programs that studies share are made once.
    done = smoke(study, tmp_path, "--seeds=1", *flags, run=launch if study == "buffer" else launch_here)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "results" / study
    asked = flags[-1].removeprefix("--arms=").split(",") if flags else None
    names = {arm.name for arm in STUDIES[study].arms(1200) if asked is None or arm.name in asked}
    if STUDIES[study].search:
        names &= {run["arm"] for run in store.read(directory)}
        assert len(names) > 3
    assert {run["arm"] for run in store.read(directory)} == names
    # Nothing that is kept says where the files of a run were.
    assert str(tmp_path) not in (directory / store.FILE).read_text()
    for run in store.read(directory):
        ticket = run["config"]["ticket"]
        assert ticket is None or (len(ticket) == 16 and int(ticket, 16) >= 0)
    text = (directory / "README.md").read_text()
    for name in names:
        # The dense agent stands beside clones, too.
        assert f"| {name} | 1 |" in text.replace("*", "")
    for word in text.split("(")[1:]:
        name = word.partition(")")[0]
        if name.endswith(".png"):
            assert (directory / name).exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--study=buffer", "--report_only", "--results=nowhere"], "nowhere/buffer holds no run yet"),
        (["--study=table2", "--preset=td3/ant"], "preset=td3/ant: of presets a study takes rlx2, paper, release"),
        (["--study=table9"], "unknown study 'table9'; valid: table2, "),
        (["--study=table2", "--env=hopper"], "--env says nothing to a study; use --rows"),
        (["--study=table2", "--scale=-1"], "scale=-1.0: a positive share of 3,000,000 steps"),
        (["--study=table2", "--scale=0.1", "--total_steps=5"], "without --total_steps"),
        (["--study=table2", "--method=rlx2"], "--method is what this study varies"),
        (["--study=table2", "--seeds=x"], "seeds=x: write 4"),
        (["--study=table2", "--arms=magic"], "unknown arms ['magic']; valid: dense, "),
        (["--study=table2", "--smoke", "--results=/proc/nowhere"], "cannot be written (No such file or directory)"),
        (["--study=table2", "--scale=1e300"], "scale=1e+300: a positive share"),
        (["--study=table2", "--dry_run", "--parallel=foo"], "unknown parallel 'foo'; valid: shard_map, "),
        (["--study=table2", "--dry_run", "--workers=0"], "workers=0: of the cores here this process may use "),
        (["--study=table2", "--smoke", "--workers=1"], "workers=1 says nothing to --parallel=shard_map"),
        (["--study=table2", "--smoke", "--buffer_max=2000000000"], "lower --buffer_max or --hidden"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(flags, sentence, tmp_path):
    done = launch_here("reproduce.py", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_row_on_the_papers_own_task_is_one_command(tmp_path):
    done = launch_here("reproduce.py", "--study=table2-mujoco", "--rows=td3/Hopper-v4", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == "30 runs, 30 of them not recorded yet\n"


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    done = launch_here("reproduce.py", "--study=table2", "--preset=release", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == "384 runs, 384 of them not recorded yet\n"
    assert list(tmp_path.iterdir()) == []
