"""Studies: which runs they are, what is recorded of them, what the report says; and the launcher in small."""

import dataclasses
import json
import os

import numpy as np
import PIL.Image
import pytest

from rlx2_jax import accounting, envs, statistics
from rlx2_jax.config import Config, resolve
from rlx2_jax.errors import ConfigError, WorkdirError
from rlx2_jax.studies import STUDIES, records, report, runs
from rlx2_jax.studies.catalogue import TABLE_2, Run
from tests.conftest import ROOT, cached, launch

RESULTS = ROOT / "experiments" / "results"


def line(arm="rlx2", seed=0, score=100.0, row="td3/hopper", study="table2", **settings):
    """A recorded run that never was."""
    found = runs(STUDIES[study], [row], [seed], {"total_steps": 60_000, **settings}, [arm])
    (run,) = found
    env = envs.make(run.config.env)
    account = accounting.account(run.config, env.observation_size, env.action_size)
    steps = range(5000, 60_001, 5000)
    return {
        "study": study,
        "row": row,
        "arm": arm,
        "kind": "learning",
        "agent": run.config.agent,
        "env": run.config.env,
        "backend": run.config.backend,
        "method": run.config.method,
        "actor_sparsity": run.config.actor_sparsity,
        "critic_sparsity": run.config.critic_sparsity,
        "seed": seed,
        "steps": 60_000,
        "score": score,
        "diverged": False,
        "size_ratio": account.size_ratio,
        "flops_train_ratio": account.flops_train_ratio,
        "evaluations": {name: [float(s) for s in steps] for name in ("steps", *records.COLUMNS)},
        "provenance": {"command": "python x", "commit": "c0ffee", "device": "d", "versions": {}, "compute": "masked"},
        "config": run.config.to_dict(),
    }


def cells(text, arm):
    """The cells of an arm's line in a report."""
    (found,) = [row for row in text.splitlines() if row.replace("*", "").startswith(f"| {arm} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_papers_numbers_are_those_of_its_averages_and_agree_between_its_tables():
    averages = {
        "td3": {"tiny": 57.0, "ss": 59.3, "set": 65.2, "rigl": 71.4, "rlx2": 99.7},
        "sac": {"tiny": 76.9, "ss": 72.4, "set": 93.6, "rigl": 93.2, "rlx2": 105.2},
    }
    for agent, by_arm in averages.items():
        rows = [row for row in TABLE_2 if row.startswith(agent)]
        assert len(rows) == 4
        for arm, average in by_arm.items():
            assert np.mean([TABLE_2[row][arm] for row in rows]) == pytest.approx(average, abs=0.051)
    for row, numbers in STUDIES["table3-topology"].paper.items():
        assert numbers["rlx2"] == TABLE_2[row]["rlx2"] == STUDIES["table3-nstep"].paper[row]["3-step"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_distinct_runs_of_every_arm_row_and_seed(name):
    study = STUDIES[name]
    found = runs(study, study.rows, [0, 1], {"total_steps": 60_000})
    arms = study.arms(60_000)
    assert len(found) == len(study.rows) * len(arms) * 2
    assert len({(records.identity(run.config), run.needs) for run in found}) == len(found)
    assert study.hero in {arm.name for arm in arms}
    for row, numbers in study.paper.items():
        assert row in study.rows
        assert set(numbers) <= {arm.name for arm in arms}


def test_rows_bring_table_2s_sparsities_and_settings_override_them():
    row = lambda **settings: runs(STUDIES["table2"], ["sac/ant"], [0], settings, ["rlx2"])[0].config
    assert (row().actor_sparsity, row().critic_sparsity, row().total_steps) == (0.90, 0.75, 3_000_000)
    assert row(critic_sparsity=0.5).critic_sparsity == 0.5
    other = runs(STUDIES["table2"], ["td3/inverted_pendulum"], [0], {"total_steps": 60_000}, ["rlx2"])[0].config
    assert (other.env, other.agent, other.actor_sparsity) == ("inverted_pendulum", "td3", 0.9)


def test_the_3_step_agent_of_one_study_is_the_rlx2_of_another():
    settings = {"total_steps": 60_000}
    of = lambda study, arm: records.identity(runs(STUDIES[study], ["td3/ant"], [2], settings, [arm])[0].config)
    assert of("table3-nstep", "3-step") == of("table2", "rlx2") == of("buffer", "dynamic")
    assert of("table3-topology", "dense") == of("buffer", "dense")


@pytest.mark.parametrize(
    ("rows", "settings", "arms", "sentence"),
    [
        (["hopper"], {}, (), "rows=hopper: name an agent and a task"),
        (["td3/pong"], {}, (), "unknown env"),
        (["td3/hopper"], {"n_step": 2}, (), "--n_step is what this study varies"),
        (["td3/hopper"], {}, ["magic"], "unknown arms"),
    ],
)
def test_a_study_that_cannot_be_is_one_sentence(rows, settings, arms, sentence):
    with pytest.raises(ConfigError, match=sentence):
        [envs.make(run.config.env) for run in runs(STUDIES["table3-nstep"], rows, [0], settings, arms)]


def test_records_are_appended_once_and_found_by_every_study(tmp_path):
    first, second = line(seed=0), line(seed=1)
    records.append(tmp_path / "table2", [first])
    records.append(tmp_path / "table2", [first, second])
    assert records.read(tmp_path / "table2") == [first, second]
    (run,) = runs(STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 60_000}, ["dynamic"])
    found = records.known(tmp_path)[records.identity(run.config)]
    assert records.relabelled(found, "buffer", run) == {**second, "study": "buffer", "arm": "dynamic"}
    # Another way of computing is the same run; another length is not.
    assert records.identity(dataclasses.replace(run.config, compute="packed")) == records.identity(run.config)
    (longer,) = runs(STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 90_000}, ["dynamic"])
    assert records.identity(longer.config) not in records.known(tmp_path)


def test_settings_that_are_newer_than_a_record_have_their_defaults_there(tmp_path):
    old = line()
    del old["config"]["sac_explore"]
    records.append(tmp_path / "table2", [old])
    assert list(records.known(tmp_path)) == [records.identity(resolve(Config.from_dict(old["config"])))]
    # And are no reason to record the run again.
    records.append(tmp_path / "table2", [line()])
    assert records.read(tmp_path / "table2") == [old]


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / records.FILE).write_text('{"row": ')
    with pytest.raises(WorkdirError, match=r"runs.jsonl is damaged; restore it"):
        records.read(tmp_path)


def test_a_runs_line_holds_its_score_and_evaluations_as_they_were(tmp_path):
    config = resolve(Config(total_steps=60_000, score_evaluations=3))
    rows = [{"env_steps": 1000 * k, "return_mean": 100.0 * k, "return_std": 1 / 3, "other": 1} for k in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text(json.dumps({"finished": True, "commit": "c0ffee", "size_ratio": 0.1}))
    found = records.of_directory(Run("td3/x", "rlx2", config), "table2", tmp_path, diverged=False)
    assert found["score"] == 700
    assert found["score_evaluations"] == 3
    assert found["best"] == 800
    assert found["evaluations"]["return_std"] == [0.333333] * 8
    assert found["provenance"]["commit"] == "c0ffee"
    assert resolve(Config.from_dict(found["config"])) == config
    assert json.loads(json.dumps(found)) == found


def test_a_report_says_what_the_statistics_say(tmp_path):
    scores = {"dense": [90.0, 100.0, 110.0, 140.0], "rlx2": [95.0, 105.0, 130.0, 135.0], "ss": [10.0, 20.0, 30.0, 90.0]}
    records.append(
        tmp_path, [line(arm, seed, score) for arm, values in scores.items() for seed, score in enumerate(values)]
    )
    report.write(tmp_path, "table2", STUDIES["table2"])
    text = (tmp_path / "README.md").read_text()
    sample = {arm: [np.array(values)] for arm, values in scores.items()}
    relative = statistics.estimate(statistics.ratio, sample["rlx2"], sample["dense"])
    better = statistics.estimate(statistics.improvement, sample["rlx2"], sample["ss"])
    assert cells(text, "rlx2")[1] == "4"
    assert cells(text, "rlx2")[4] == f"{100 * relative.value:.1f} [{100 * relative.low:.1f}, {100 * relative.high:.1f}]"
    assert cells(text, "rlx2")[5] == "97"
    assert cells(text, "ss")[3].startswith("25.0 [")
    assert cells(text, "ss")[6] == f"{better.value:.2f} [{better.low:.2f}, {better.high:.2f}]"
    assert cells(text, "rlx2")[7] == "0.040"
    assert cells(text, "dense")[9] == "90, 100, 110, 140"
    assert (tmp_path / "td3-hopper-60000.png").exists()


def test_runs_of_different_lengths_are_never_put_together(tmp_path):
    records.append(tmp_path, [line("rlx2", 0, 1.0), line("rlx2", 1, 2.0), line("rlx2", 0, 900.0, total_steps=90_000)])
    found = report.groups(records.read(tmp_path))
    assert [[run["score"] for run in group.lines] for group in found] == [[1, 2], [900]]
    other = line("rlx2", 0, 5.0, backend="spring")
    assert len(report.groups([*records.read(tmp_path), other])) == 3


def test_findings_are_taken_over_and_a_diverged_run_is_told(tmp_path):
    records.append(tmp_path, [line("rlx2", 0, 1.0), line("rlx2", 1, 2.0) | {"diverged": True}])
    (tmp_path / report.FINDINGS).write_text("It was the **buffer**.\n")
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert "## What was found\n\nIt was the **buffer**.\n" in text
    assert cells(text, "rlx2")[1] == "2 (1 diverged)"


@pytest.mark.parametrize("directory", sorted(RESULTS.glob(f"*/{records.FILE}")), ids=lambda path: path.parent.name)
def test_committed_reports_are_those_of_the_committed_runs(directory):
    directory = directory.parent
    study = STUDIES[directory.name]
    assert (directory / "README.md").read_text() == report.markdown(directory, directory.name, study)
    pictures = sorted(directory.glob("*.png"))
    assert pictures
    for picture in pictures:
        assert PIL.Image.open(picture).text["Source"] == report.digest(directory), f"{picture} is not of these runs"


def smoke(study, tmp_path, *flags):
    """A study in small, by its launcher."""
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    try:
        return launch(
            "reproduce.py", f"--study={study}", "--smoke", "--results=results", "--workdir=work", cached(), *flags,
            cwd=tmp_path,
        )  # fmt: skip
    finally:
        del os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"]


def test_a_study_in_small_from_the_command_line_to_its_report_and_on(tmp_path):
    done = smoke("table2", tmp_path)
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "results" / "table2"
    kept = (directory / records.FILE).read_text()
    made = records.read(directory)
    assert sorted((run["arm"], run["seed"]) for run in made) == sorted(
        (arm, seed) for arm in ("dense", "tiny", "ss", "set", "rigl", "rlx2") for seed in (0, 1)
    )
    for run in made:
        assert run["steps"] == 1200
        assert run["evaluations"]["steps"] == [400, 800, 1200]
        assert run["score"] == pytest.approx(np.mean(run["evaluations"]["return_mean"]), rel=1e-5)
        assert run["provenance"]["command"].endswith(f"--workdir=work {cached()}")
        assert run["provenance"]["versions"]["jax"]
    # Nothing is made twice, wherever the runs' own files are; and the report needs nothing but what is kept.
    for flags in (["--workdir=elsewhere"], ["--report_only", "--workdir=elsewhere"]):
        text = (directory / "README.md").read_bytes()
        (directory / "README.md").unlink()
        again = smoke("table2", tmp_path, *flags)
        assert again.returncode == 0, again.stderr
        assert (directory / "README.md").read_bytes() == text
        assert (directory / records.FILE).read_text() == kept
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
@pytest.mark.parametrize("study", [name for name in STUDIES if name != "table2"])
def test_every_other_study_in_small(study, tmp_path):
    done = smoke(study, tmp_path, "--seeds=1")
    assert done.returncode == 0, done.stderr
    directory = tmp_path / "results" / study
    names = {arm.name for arm in STUDIES[study].arms(1200)}
    if STUDIES[study].search:
        names &= {run["arm"] for run in records.read(directory)}
        assert len(names) > 3
    assert {run["arm"] for run in records.read(directory)} == names
    # Nothing that is kept says where the files of a run were.
    assert str(tmp_path) not in (directory / records.FILE).read_text()
    for run in records.read(directory):
        ticket = run["config"]["ticket"]
        assert ticket is None or (len(ticket) == 16 and int(ticket, 16) >= 0)
    text = (directory / "README.md").read_text()
    for name in names:
        assert cells(text, name)[1] == "1"
    for word in text.split("(")[1:]:
        name = word.partition(")")[0]
        if name.endswith(".png"):
            assert (directory / name).exists()


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--study=table9"], "unknown study 'table9'; valid: table2, "),
        (["--study=table2", "--env=hopper"], "--env says nothing to a study; use --rows"),
        (["--study=table2", "--scale=-1"], "scale=-1.0: a positive share of 3,000,000 steps"),
        (["--study=table2", "--scale=0.1", "--total_steps=5"], "without --total_steps"),
        (["--study=table2", "--method=rlx2"], "--method is what this study varies"),
        (["--study=table2", "--seeds=x"], "seeds=x: write 4"),
        (["--study=table2", "--arms=magic"], "unknown arms ['magic']; valid: dense, "),
        (["--study=buffer", "--report_only", "--results=nowhere"], "nowhere/buffer holds no run yet"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_written(flags, sentence, tmp_path):
    done = launch("reproduce.py", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_and_writes_nothing(tmp_path):
    done = launch("reproduce.py", "--study=table2", "--dry_run", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr == "384 runs, 384 of them not recorded yet\n"
    assert list(tmp_path.iterdir()) == []
