"""Studies: what is recorded of their runs."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from paper import STUDIES, Run, plan, store

from rlx2_jax import envs, policies
from rlx2_jax.config import Config, resolve
from rlx2_jax.errors import WorkdirError
from rlx2_jax.io import files, provenance
from rlx2_jax.networks.structure import structure
from rlx2_jax.policies import tickets
from tests.study_lines import line


def test_records_are_appended_once_and_found_by_every_study(tmp_path):
    first, second = line(seed=0), line(seed=1)
    store.append(tmp_path / "table2", [first])
    store.append(tmp_path / "table2", [first, second])
    assert store.read(tmp_path / "table2") == [first, second]
    (run,) = plan.runs(STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 60_000}, ["dynamic"])
    found = store.known(tmp_path)[store.identity(run.config)]
    assert store.relabelled(found, "buffer", run) == {**second, "study": "buffer", "arm": "dynamic"}
    # Another way of computing, saved more often, is the same run; another length is not.
    otherwise = dataclasses.replace(run.config, compute="packed", checkpoint_every=600)
    assert store.identity(otherwise) == store.identity(run.config)
    (saved,) = plan.runs(
        STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 60_000, "checkpoint_every": 600}, ["dynamic"]
    )
    assert saved.conditions == run.conditions
    (longer,) = plan.runs(STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 90_000}, ["dynamic"])
    assert store.identity(longer.config) not in store.known(tmp_path)


def test_settings_that_are_newer_than_a_record_have_their_defaults_there(tmp_path):
    old = line()
    del old["config"]["sac_explore"]
    store.append(tmp_path / "table2", [old])
    assert list(store.known(tmp_path)) == [store.identity(resolve(Config.from_dict(old["config"])))]
    # And are no reason to record the run again.
    store.append(tmp_path / "table2", [line()])
    assert store.read(tmp_path / "table2") == [old]


def test_a_run_that_is_given_twice_is_recorded_once(tmp_path):
    store.append(tmp_path, [line(), line()])
    assert store.read(tmp_path) == [line()]


def test_a_damaged_record_is_refused(tmp_path):
    (tmp_path / store.FILE).write_text('{"row": ')
    with pytest.raises(WorkdirError, match=r"runs.jsonl is damaged \(.*; restore it"):
        store.read(tmp_path)


def test_a_runs_line_holds_its_score_and_evaluations_as_they_were(tmp_path):
    config = resolve(Config(total_steps=60_000, score_evaluations=3))
    rows = [{"env_steps": 1000 * k, "return_mean": 100.0 * k, "return_std": 1 / 3, "other": 1} for k in range(1, 9)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "summary.json").write_text(json.dumps({"finished": True, "commit": "c0ffee", "size_ratio": 0.1}))
    found = store.of_directory(Run("td3/x", "rlx2", config), "table2", tmp_path, diverged=False)
    assert found["score"] == 700
    assert found["score_evaluations"] == 3
    assert found["best"] == 800
    assert found["evaluations"]["return_std"] == [0.333333] * 8
    assert found["provenance"]["commit"] == "c0ffee"
    assert resolve(Config.from_dict(found["config"])) == config
    assert json.loads(json.dumps(found)) == found


def test_what_diverged_counts_with_its_lowest_evaluation(tmp_path):
    rows = [{"env_steps": 1000 * k, "return_mean": 100.0 * k, "return_std": 1.0} for k in (2, 1, 3)]
    files.write_json_lines(tmp_path / "metrics.jsonl", rows)
    run = Run("td3/x", "rlx2", resolve(Config(total_steps=60_000)))
    assert store.of_directory(run, "table2", tmp_path, diverged=True)["score"] == 100
    assert store.of_directory(run, "table2", tmp_path / "none", diverged=True)["score"] == 0


def test_a_clone_is_not_the_run_of_its_configuration(tmp_path):
    store.append(tmp_path / "tickets", [line("random", study="tickets") | {"kind": "cloning"}])
    assert store.known(tmp_path) == {}


def test_a_record_with_settings_that_are_gone_is_kept_and_found_by_no_run(tmp_path):
    old = line()
    old["config"]["gone"] = 1
    store.append(tmp_path / "table2", [old, line()])
    assert len(store.read(tmp_path / "table2")) == 2
    assert list(store.known(tmp_path).values()) == [line()]


def test_the_observations_that_are_always_zero_are_these():
    for name, dead in store.ALWAYS_ZERO.items():
        env = envs.make(name)
        state = env.reset(jax.random.PRNGKey(0))
        seen = [state.observation]
        for key in jax.random.split(jax.random.PRNGKey(1), 20):
            state = env.step(state, jax.random.uniform(key, (env.action_size,), minval=-1))
            seen.append(state.observation)
        np.testing.assert_array_equal(np.flatnonzero((np.array(seen) == 0).all(0)), [*dead])


def test_links_at_dead_inputs_are_counted_in_a_runs_masks(tmp_path):
    (run,) = plan.runs(STUDIES["ant-inputs"], ["td3/Ant-v3"], [0], {"hidden": (8,)}, ["rlx2"])
    rng, trees = np.random.default_rng(0), []
    for _ in range(2):
        trees.append({})
        for name, own in structure(run.config, 111, 8).items():
            lead = (2,) if name == "critic" else ()
            masks = trees[-1][name] = {}
            for i, ((rows, columns), count) in enumerate(zip(own.shapes, own.links, strict=True)):
                draw = lambda size=rows * columns, count=count: rng.permutation(size) < count
                kernel = np.array([draw() for _ in range(2)] if lead else draw()).reshape(*lead, rows, columns)
                masks[f"Dense_{i}"] = {"kernel": kernel}
    about = policies.describe(run.config, 5, 1.0) | {"sizes": [111, 8]}
    assert store.DEAD_INPUTS not in store.of_directory(run, "ant-inputs", tmp_path, diverged=False)
    tickets.save(tmp_path / tickets.NAME, *trees, about)
    found = store.of_directory(run, "ant-inputs", tmp_path, diverged=False)[store.DEAD_INPUTS]
    first = lambda when, name: trees[when][name]["Dense_0"]["kernel"]
    for name in ("actor", "critic"):
        assert found[name] == [[int(first(w, name)[..., 27:111, :].sum()), int(first(w, name).sum())] for w in (0, 1)]


def test_a_command_is_kept_without_places_on_this_machine(monkeypatch):
    places = ["--workdir=/home/me", "--results", "/tmp/r", "--ticket=/home/me/found"]
    given = ["/home/me/x/experiments/train.py", "--seed=1", *places, "--env=ant"]
    monkeypatch.setattr("sys.argv", given)
    assert provenance.command() == "python experiments/train.py --seed=1 --env=ant"
    monkeypatch.setattr("sys.argv", [])  # Of an interpreter inside another program.
    assert provenance.command() == "python"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("AMD EPYC", "AMD EPYC (family 25, model 17)"),
        ("AMD EPYC 9654 96-Core Processor", "AMD EPYC 9654 96-Core Processor"),
        ("", ""),
    ],
)
def test_a_processor_whose_name_says_no_generation_is_told_by_its_numbers(name, told):
    facts = f"vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: {name}\nstepping\t: 1\n"
    assert provenance.model_name(f"processor\t: 0\n{facts}\nprocessor\t: 1\n{facts.replace('25', '26')}") == told
