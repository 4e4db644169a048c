"""Studies: which runs they are, what is recorded of them, what the report says; and the launcher in small."""

import dataclasses
import itertools
import json
import math
import re
import shutil
import signal
from unittest import mock

import jax
import numpy as np
import PIL.Image
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paper import STUDIES, comparisons, figures, published, registry, report, runner, runs, search, store
from paper.registry import FACTORS, TABLE_2, Run, check

from rlx2_jax import envs, policies
from rlx2_jax.analysis import accounting, statistics
from rlx2_jax.config import Config, presets, resolve
from rlx2_jax.errors import ConfigError, DivergedError, RlxError, WorkdirError
from rlx2_jax.io import files, lock, provenance
from rlx2_jax.networks.structure import structure
from rlx2_jax.policies import tickets
from rlx2_jax.sweeps import plans, workers
from rlx2_jax.training.signals import StopSignals
from tests.conftest import ROOT, cached, launch, launch_here

RESULTS = ROOT / "experiments" / "results"


def line(arm="rlx2", seed=0, score=100.0, row="td3/hopper", study="table2", **settings):
    """A recorded run that never was."""
    found = runs(STUDIES[study], [row], [seed], {"total_steps": 60_000, **settings})
    (run,) = (run for run in found if run.arm == arm)
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
        "env_steps": 60_000,
        "score": score,
        "diverged": False,
        "size_ratio": account.size_ratio,
        "flops_train_ratio": account.flops_train_ratio,
        "flops_test_ratio": account.flops_test_ratio,
        "evaluations": {name: [float(s) for s in steps] for name in ("steps", *store.COLUMNS)},
        "conditions": dict(run.conditions),
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
    assert len({(store.identity(run.config), run.needs) for run in found}) == len(found)
    assert study.focus in {arm.name for arm in arms}
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
    of = lambda study, arm: store.identity(runs(STUDIES[study], ["td3/ant"], [2], settings, [arm])[0].config)
    assert of("table3-nstep", "3-step") == of("table2", "rlx2") == of("buffer", "dynamic")
    assert of("table3-topology", "dense") == of("buffer", "dense")


@pytest.mark.parametrize(
    ("study", "about"),
    [
        ("table3-topology", {"method", "topology"}),
        ("table3-nstep", {"n_step", "n_max"}),
        ("buffer", {"buffer_max", "dynamic_buffer"}),
        ("tickets", {"topology", "ticket_weights"}),
        ("mask-quality", {"topology"}),
        ("sparsity-curve", {"actor_sparsity", "critic_sparsity"}),
        ("layernorm", {"network"}),
        ("delay", {"n_step", "n_step_delay"}),
    ],
)
def test_an_ablation_changes_what_it_is_about_and_nothing_else(study, about):
    found = {run.arm: run.config.to_dict() for run in runs(STUDIES[study], ["td3/hopper"], [0], {})}
    focus = found[STUDIES[study].focus]
    # Where it is not about methods, those of other methods are whole agents to compare with.
    methods = {"tiny", "ss", "set", "rlx2"} if "method" in about else {"rlx2"}
    ablations = [values for values in found.values() if values["method"] in methods]
    assert {name for values in ablations for name in values if values[name] != focus[name]} == about


MUJOCO = [name for name, study in STUDIES.items() if study.settings]


@pytest.mark.parametrize("name", MUJOCO)
def test_points_in_time_are_the_papers_own_on_its_own_tasks(name):
    study = STUDIES[name]
    for run in runs(study, study.rows, [0], {}):
        c = run.config
        assert (c.total_steps, c.num_envs, c.kernel_init) == (1_000_000, 2, "release")
        assert (c.warmup_steps, c.evolve_interval, c.buffer_check_interval) == (25_000, 10_000, 10_000)
        assert c.n_step_delay == 300_000 or name == "delay"
        assert c.buffer_min == (100_000 if c.agent == "td3" else 200_000)
        assert (c.eval_every, c.score_evaluations, c.eval_episodes) == (5000, 30, 10)


def test_a_studys_settings_give_way_to_those_asked_for():
    row = lambda **settings: runs(STUDIES["table2-mujoco"], ["td3/Hopper-v4"], [0], settings, ["rlx2"])[0].config
    longer = row(total_steps=3_000_000, kernel_init="lecun", num_envs=20)
    assert (longer.total_steps, longer.kernel_init, longer.num_envs) == (3_000_000, "lecun", 20)
    assert (longer.n_step_delay, longer.evolve_interval) == (300_000, 10_000)
    assert (row().actor_sparsity, row().critic_sparsity) == (0.98, 0.95)


def test_rows_and_arms_on_the_papers_own_tasks_come_in_the_order_of_their_worth():
    study = STUDIES["table2-mujoco"]
    found = runs(study, study.rows, range(study.seeds), {})
    tasks = ("Hopper-v4", "Ant-v3", "HalfCheetah-v4", "Walker2d-v4")
    assert list(dict.fromkeys(run.row for run in found)) == [f"{a}/{t}" for a in ("td3", "sac") for t in tasks]
    assert list(dict.fromkeys(run.arm for run in found)) == ["rlx2", "dense", "rigl", "ss", "set", "tiny"]
    assert len(found) == 8 * 6 * 5
    assert study.paper["td3/Ant-v3"] == TABLE_2["td3/ant"] and set(study.paper) == set(study.rows)


def test_studies_on_the_papers_own_tasks_share_their_runs():
    of = lambda study, arm: store.identity(runs(STUDIES[study], ["td3/Ant-v3"], [2], {}, [arm])[0].config)
    for arm in ("dense", "ss", "rlx2"):
        assert of("ant-inputs", arm) == of("table2-mujoco", arm)
    assert of("delay", "dense") == of("beyond", "dense") == of("table2-mujoco", "dense")
    assert of("delay", "from-0.3") == of("table2-mujoco", "rlx2") != of("delay", "from-0.1")
    both = runs(STUDIES["ant-inputs"], STUDIES["ant-inputs"].rows, [0], {}, ["rlx2"])
    assert {(run.config.actor_sparsity, run.config.critic_sparsity) for run in both} == {(0.96, 0.88)}


def links(config):
    """Links of an actor and of a critic."""
    task = envs.make(config.env, config.backend)
    found = structure(config, task.observation_size, task.action_size)
    return sum(found["actor"].links), sum(found["critic"].links)


@pytest.mark.parametrize("row", STUDIES["beyond"].rows)
def test_every_arm_beyond_the_paper_has_half_of_its_size(row):
    (paper,) = runs(STUDIES["table2-mujoco"], [row], [0], {}, ["rlx2"])
    found = {run.arm: run.config for run in runs(STUDIES["beyond"], [row], [0], {})}
    size = lambda config: sum(n * count for n, count in zip((2, 4), links(config), strict=True))
    assert 2 * size(found["rlx2"]) == pytest.approx(size(paper.config), rel=2e-3)
    for arm, config in found.items():
        if config.method != "dense":
            # What rounding of three matrices comes to, in two actors and four critics.
            assert abs(size(config) - size(found["rlx2"])) <= 9, arm
    actor, critic = links(found["critic-heavier"])
    assert actor == pytest.approx(links(found["rlx2"])[0] / 2, abs=2) and critic > links(found["rlx2"])[1]


def test_the_arithmetic_of_hopper_is_that_of_the_documents():
    found = {run.arm: run.config for run in runs(STUDIES["beyond"], ["td3/Hopper-v4"], [0], {})}
    heavier = found["critic-heavier"]
    assert heavier.actor_sparsity == 0.995
    assert 1 - heavier.critic_sparsity == pytest.approx(0.025 + 0.5 * 2 * 69_120 * 0.01 / (4 * 69_376), abs=1e-6)
    actor, critic = links(found["rlx2"])
    assert (actor, critic) == (691, 1734)
    assert round(100 * 4 * critic / (2 * actor + 4 * critic)) == 83


def test_each_factor_is_rlx2_with_one_change_and_together_they_are_all():
    arms = {arm.name: arm for arm in STUDIES["beyond"].arms(1)}
    for name, factor in FACTORS.items():
        assert arms[name].settings == {"method": "rlx2", **factor.settings} and arms[name].fitted is factor.fitted
    screened = [FACTORS[name] for name in registry.SCREENED]
    assert arms["together"].settings == {k: v for factor in screened for k, v in factor.settings.items()}
    assert arms["together"].fitted is registry.critic_heavier
    assert arms["dense-critic-norm"].settings == {"method": "dense", "critic_network": "layernorm"}


def test_a_search_may_go_with_factors(monkeypatch):
    monkeypatch.setattr(registry, "RECIPE", ("sparser", "5-step"))
    arms = {arm.name: arm.settings for arm in STUDIES["beyond-frontier"].arms(1)}
    thin = {"actor_sparsity": 0.99, "critic_sparsity": 0.99}
    assert arms["rlx2@0.99"] == {"method": "sparser", "n_step": 5, **thin}
    assert arms["dense"] == {"method": "dense"}


def test_the_observations_that_are_always_zero_are_these():
    for name, dead in registry.ALWAYS_ZERO.items():
        env = envs.make(name)
        state = env.reset(jax.random.PRNGKey(0))
        seen = [state.observation]
        for key in jax.random.split(jax.random.PRNGKey(1), 20):
            state = env.step(state, jax.random.uniform(key, (env.action_size,), minval=-1))
            seen.append(state.observation)
        np.testing.assert_array_equal(np.flatnonzero((np.array(seen) == 0).all(0)), [*dead])


def test_links_at_dead_inputs_are_counted_in_a_runs_masks(tmp_path):
    (run,) = runs(STUDIES["ant-inputs"], ["td3/Ant-v3"], [0], {"hidden": (8,)}, ["rlx2"])
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


def test_the_arms_of_tickets_and_buffers_are_these():
    found = {arm.name: (arm.ticket, arm.teacher, dict(arm.settings)) for arm in STUDIES["tickets"].arms(1)}
    fixed = {"method": "rlx2", "topology": "fixed"}
    initial, release = ({**fixed, "ticket_weights": name} for name in ("initial", "release"))
    assert found == {
        "dense": (None, None, {"method": "dense"}),
        "random": (None, None, fixed),
        "winning": ("dynamic", None, initial),
        "winning-release": ("dynamic", None, release),
        "dynamic": (None, None, {"method": "rlx2"}),
        "clone-random": (None, "dense", fixed),
        "clone-winning": ("clone-dynamic", "dense", initial),
        "clone-winning-release": ("clone-dynamic", "dense", release),
        "clone-dynamic": (None, "dense", {"method": "rlx2"}),
    }
    masks = {arm.name: arm.ticket for arm in STUDIES["mask-quality"].arms(1) if arm.name.startswith("mask")}
    assert masks == {"mask-random": None, "mask-of-rigl": "rigl", "mask-of-rlx2": "rlx2"}
    sizes = {arm.name: arm.settings.get("buffer_max") for arm in STUDIES["buffer"].arms(3_000_000)}
    fixed = {"fixed-100k": 100_000, "fixed-300k": 300_000, "fixed-1M": 1_000_000}
    assert sizes == {"dense": None, "dynamic": None, **fixed, "unlimited": 3_000_000}


def test_runs_of_every_study_are_evaluated_as_often_whatever_simulates_them():
    at = lambda study, row, **settings: runs(STUDIES[study], [row], [0], settings, ["rlx2"])[0].config.eval_every
    assert at("table2", "td3/hopper") == at("table2-mujoco", "td3/Hopper-v4") == at("table2", "sac/ant") == 5000
    assert at("table2", "td3/hopper", eval_every=25_000) == 25_000, "what is asked for is taken as asked"
    assert at("table2", "td3/hopper", total_steps=8_000) == 2_000


def test_only_what_changes_a_run_is_a_condition():
    (plain,) = runs(STUDIES["table2"], ["td3/hopper"], [0], {"total_steps": 500_000}, ["rlx2"])
    derived = {"total_steps": 500_000, "eval_every": plain.config.eval_every, "kernel_init": "release"}
    (same,) = runs(STUDIES["table2"], ["td3/hopper"], [0], derived, ["rlx2"])
    assert (same.config, same.conditions) == (plain.config, plain.conditions)
    # The default of one arm alone.
    (other,) = runs(STUDIES["table2"], ["td3/hopper"], [0], {"total_steps": 500_000, "n_step": 3}, ["rlx2"])
    assert other.config == plain.config
    assert other.conditions["n_step"] == 3


@pytest.mark.parametrize("reading", ["release", "paper"])
@pytest.mark.parametrize("study", ["tickets", "mask-quality"])
def test_a_reading_gives_way_to_what_an_arm_sets(study, reading):
    found = runs(STUDIES[study], ["td3/hopper"], [0], {}, reading=presets.READINGS[reading])
    arms = {arm.name: arm.settings for arm in STUDIES[study].arms(3_000_000)}
    assert {run.arm for run in found} == set(arms)
    for run in found:
        for name, value in arms[run.arm].items():
            assert getattr(run.config, name) == value


@pytest.mark.parametrize(
    ("rows", "settings", "arms", "sentence"),
    [
        (["hopper"], {}, (), "rows=hopper: name an agent and a task"),
        (["td3/hopper", "td3/pong"], {}, (), "unknown env"),
        (["td3/hopper"], {"actor_sparsity": 0.99999}, (), "without a link; use a lower one"),
        (["td3/hopper"], {"n_step": 2}, (), "--n_step is what this study varies"),
        (["td3/hopper"], {}, ["magic"], "unknown arms"),
    ],
)
def test_a_study_that_cannot_be_is_one_sentence(rows, settings, arms, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check(runs(STUDIES["table3-nstep"], rows, [0], settings, arms))


def test_a_search_chooses_its_arms_itself():
    with pytest.raises(ConfigError, match="chooses its arms itself; leave it out"):
        runs(STUDIES["frontier"], ["td3/hopper"], [0], {}, ["dense"])


def test_records_are_appended_once_and_found_by_every_study(tmp_path):
    first, second = line(seed=0), line(seed=1)
    store.append(tmp_path / "table2", [first])
    store.append(tmp_path / "table2", [first, second])
    assert store.read(tmp_path / "table2") == [first, second]
    (run,) = runs(STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 60_000}, ["dynamic"])
    found = store.known(tmp_path)[store.identity(run.config)]
    assert store.relabelled(found, "buffer", run) == {**second, "study": "buffer", "arm": "dynamic"}
    # Another way of computing, saved more often, is the same run; another length is not.
    otherwise = dataclasses.replace(run.config, compute="packed", checkpoint_every=600)
    assert store.identity(otherwise) == store.identity(run.config)
    (saved,) = runs(
        STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 60_000, "checkpoint_every": 600}, ["dynamic"]
    )
    assert saved.conditions == run.conditions
    (longer,) = runs(STUDIES["buffer"], ["td3/hopper"], [1], {"total_steps": 90_000}, ["dynamic"])
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


def test_a_report_says_what_the_statistics_say(tmp_path):
    scores = {"dense": [90.0, 100.0, 110.0, 140.0], "rlx2": [95.0, 105.0, 130.0, 135.0], "ss": [10.0, 20.0, 30.0, 90.0]}
    store.append(
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
    assert cells(text, "rlx2")[6] == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x - 97 for x in relative[1:]))
    assert cells(text, "ss")[7] == f"{better.value:.2f} [{better.low:.2f}, {better.high:.2f}]"
    assert cells(text, "ss")[8:10] == ["0.029", f"{statistics.permutation(sample['ss'], sample['dense']):.3f}"]
    assert cells(text, "rlx2")[8:10] == ["-", f"{statistics.permutation(sample['rlx2'], sample['dense']):.2f}"]
    assert cells(text, "dense")[8:10] == [cells(text, "rlx2")[9], "-"]
    assert cells(text, "rlx2")[10] == "0.040 (0.040)"
    assert cells(text, "rlx2")[12] == "0.020 (0.020)"
    assert cells(text, "ss")[10] == "0.040"
    assert cells(text, "dense")[13] == "90, 100, 110, 140"
    assert (tmp_path / "td3-hopper-60000.png").exists()


def test_only_runs_under_the_same_conditions_are_put_together():
    alike = [line("rlx2", 0, 1.0), line("ss", 1, 2.0)]
    others = [
        line(total_steps=90_000),
        line(backend="spring"),
        line(initial_mask="random"),
        line(actor_sparsity=0.5),
        line(buffer_max=30_000),
        line(row="td3/ant"),
    ]
    found = report.groups([*alike, *others])
    assert [len(group.lines) for group in found] == [2, 1, 1, 1, 1, 1, 1]
    # A setting that is named and is the default is no other condition.
    assert len(report.groups([*alike, line(gamma=0.99)])) == 1


def test_sections_of_the_same_row_and_length_are_told_apart_by_their_settings(tmp_path):
    store.append(tmp_path, [line(), line(gamma=0.9), line(gamma=0.9, batch_size=64), line(total_steps=120_000)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert [row for row in text.splitlines() if row.startswith("## TD3")] == [
        "## TD3 on hopper, 120,000 steps",
        "## TD3 on hopper, 60,000 steps, batch_size 256, gamma 0.99",
        "## TD3 on hopper, 60,000 steps, batch_size 256, gamma 0.9",
        "## TD3 on hopper, 60,000 steps, batch_size 64, gamma 0.9",
    ]


def test_runs_without_a_dense_agent_are_variants_of_those_that_differ_least(tmp_path):
    arms = [line(arm, k, s + k) for arm, s in (("dense", 200.0), ("rlx2", 100.0)) for k in (0, 1, 2)]
    others = [line(arm, 0, 50.0, gamma=0.9) for arm in ("dense", "rlx2")]
    changed = [line("rlx2", 1, 202.0, n_step=1), line("rlx2", 0, 75.0, gamma=0.9, n_step=1, dynamic_buffer=False)]
    strange = [line("rlx2", 0, 1.0, total_steps=120_000), line("rlx2", 0, 1.0, "td3/ant"), line(backend="spring")]
    # In the order of the file a variant may stand before what it is one of.
    store.append(tmp_path, [*changed, *arms, *others, *strange])
    report.write(tmp_path, "table2", STUDIES["table2"])
    text = (tmp_path / "README.md").read_text()
    assert [row for row in text.splitlines() if "## TD3" in row] == [
        "## TD3 on hopper, 120,000 steps",
        "## TD3 on hopper, 60,000 steps, backend generalized, gamma 0.99",
        "### TD3 on hopper, 60,000 steps, backend generalized, gamma 0.99: variants",
        "## TD3 on hopper, 60,000 steps, backend generalized, gamma 0.9",
        "### TD3 on hopper, 60,000 steps, backend generalized, gamma 0.9: variants",
        "## TD3 on ant, 60,000 steps",
        "## TD3 on hopper, 60,000 steps, backend spring, gamma 0.99",
    ]
    assert cells(text, "n_step=1")[1:] == ["rlx2", "1", "202", "101", "200.0", "-", "100.5", "202"]
    of_both = ["75.0", "50.0", "150.0", "-", "150.0", "75"]
    assert cells(text, "dynamic_buffer=False, n_step=1")[1:] == ["rlx2", "1", *of_both]
    assert len(list(tmp_path.glob("*-variants.png"))) == 2


def test_a_variant_that_is_a_reading_of_the_method_is_told_by_its_name(tmp_path):
    release = presets.READINGS["release"]
    part = dict(list(release.items())[1:])
    readings = [release, release | {"gamma": 0.9}, part]
    variants = [line("rlx2", 0, score, **changed) for score, changed in enumerate(readings, start=1)]
    store.append(tmp_path, [line("dense", 0, 100.0), line("rlx2", 0, 90.0), *variants])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert cells(text, "preset=release")[3] == "1.00"
    assert cells(text, "preset=release, gamma=0.9")[3] == "2.00"
    assert cells(text, ", ".join(f"{name}={value}" for name, value in sorted(part.items())))[3] == "3.00"


def test_a_report_puts_runs_together_whose_commands_only_chose_others():
    said = (
        ("python experiments/reproduce.py --study=table2 --rows=td3/hopper --seeds=0, --n_step=1", "aa"),
        ("python experiments/reproduce.py --n_step=1 --study=table2 --seeds 3 --arms=rlx2 --workers=1", "bb"),
        ("python experiments/reproduce.py --study=table2 --seeds=3", "bb"),
    )
    lines = [line(seed=seed) for seed in range(len(said))]
    for made, (command, commit) in zip(lines, said, strict=True):
        made["provenance"] |= {"command": command, "commit": commit}
    _, table = comparisons.origins(lines)
    assert [row.strip("| ").split(" | ")[:4] for row in table.splitlines()[2:]] == [
        ["2", "td3/hopper", "`python experiments/reproduce.py --study=table2 --n_step=1`", "aa, bb"],
        ["1", "td3/hopper", "`python experiments/reproduce.py --study=table2`", "bb"],
    ]


def test_a_searchs_report_does_not_call_an_interval_undecided_that_was_not_asked(tmp_path):
    scores = {0.0: 100.0, **dict.fromkeys(search.GRID, 10.0)}
    arms = {0.0: "dense", **{sparsity: f"rlx2@{sparsity:g}" for sparsity in search.GRID}}
    store.append(
        tmp_path, [line(arms[s], k, score + k, study="frontier") for s, score in scores.items() for k in (0, 1)]
    )
    text = report.markdown(tmp_path, "frontier", STUDIES["frontier"])
    assert "lost, by the ratio alone: fewer than 5 seeds decide nothing" in text
    assert "its interval holds" not in text


def test_sections_are_told_apart_though_an_arm_sets_what_they_differ_in(tmp_path):
    arms = [line(arm, 0, 1.0) for arm in ("rigl", "rlx2", "dense")]
    store.append(tmp_path, [*arms, *(line(arm, 0, 1.0, n_step=3) for arm in ("dense", "rlx2"))])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert [row for row in text.splitlines() if row.startswith("## TD3")] == [
        "## TD3 on hopper, 60,000 steps, n_step by arm",
        "## TD3 on hopper, 60,000 steps, n_step 3",
    ]


def test_a_dynamic_buffers_fewest_are_those_of_the_dynamic_arm(tmp_path):
    arms = [line(arm, 0, 1.0, "sac/hopper", "buffer") for arm in ("dense", "dynamic", "fixed-2k")]
    assert arms[1]["config"]["buffer_min"] > arms[2]["config"]["buffer_min"]
    store.append(tmp_path, arms)
    text = report.markdown(tmp_path, "buffer", STUDIES["buffer"])
    assert f"and keeps {arms[1]['config']['buffer_min']:,}" in text


def test_a_report_leaves_no_picture_of_an_earlier_one(tmp_path):
    store.append(tmp_path, [line("rlx2", 0, 1.0), line("rlx2", 0, 1.0, gamma=0.9)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"td3-hopper-60000.png", "td3-hopper-60000-2.png"}
    store.append(tmp_path, [line("dense", 0, 1.0), line("ss", 0, 1.0)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"td3-hopper-60000.png", "td3-hopper-60000-variants.png"}


def test_a_variant_of_an_arm_that_the_section_has_not_is_measured_by_the_dense_agent(tmp_path):
    store.append(tmp_path, [line("dense", 0, 100.0), line("rigl", 0, 50.0, gamma=0.9)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert cells((tmp_path / "README.md").read_text(), "gamma=0.9")[1:8] == ["rigl", "1", "50.0", "-", "-", "-", "50.0"]


def test_a_variant_names_a_setting_that_an_arm_of_the_section_has_of_its_own(tmp_path):
    store.append(tmp_path, [line("dense", 0, 100.0), line("rlx2", 0, 50.0), line("dense", 0, 20.0, n_step=3)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    row = cells((tmp_path / "README.md").read_text(), "n_step=3")
    assert row[1:] == ["dense", "1", "20.0", "100", "20.0", "-", "20.0", "20"]


def test_a_variant_is_tested_against_the_same_arm_on_the_same_seeds(tmp_path):
    arms = [line(arm, k, s + k) for arm, s in (("dense", 200.0), ("rlx2", 100.0)) for k in range(4)]
    store.append(tmp_path, [*arms, *(line("rlx2", k, 50.0 + k, n_step=1) for k in range(3))])
    assert cells(report.markdown(tmp_path, "table2", STUDIES["table2"]), "n_step=1")[6] == "0.10"


def test_a_variant_may_differ_in_a_setting_that_is_a_list(tmp_path):
    store.append(tmp_path, [line("dense", 0, 100.0), line("rlx2", 0, 50.0), line("rlx2", 0, 20.0, hidden=(64, 64))])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert cells((tmp_path / "README.md").read_text(), "hidden=[64, 64]")[4] == "50.0"


def test_rows_are_averaged_only_if_their_runs_were_made_alike(tmp_path):
    rows = {"td3/hopper": (100.0, 90.0), "td3/walker2d": (1000.0, 700.0)}
    both = [
        line(arm, k, s + k, row)
        for row, pair in rows.items()
        for arm, s in zip(("dense", "rlx2"), pair, strict=True)
        for k in (0, 1)
    ]
    longer = [line(arm, 0, 5.0, total_steps=90_000) for arm in ("dense", "rlx2")]
    store.append(tmp_path, [*both, *longer])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    (heading,) = [row for row in text.splitlines() if row.endswith("together")]
    assert heading == "## TD3 on hopper, TD3 on walker2d together"
    together = text[text.index(heading) :]
    expected = 100 * np.mean([90.5 / 100.5, 700.5 / 1000.5])
    assert cells(together, "rlx2")[1:3] == ["4", cells(together, "rlx2")[2]]
    assert cells(together, "rlx2")[2].startswith(f"{expected:.1f} [")
    assert cells(together, "rlx2")[3] == f"{(97.0 + 98.1) / 2:.1f}"


def test_a_row_that_is_not_complete_takes_no_arm_from_the_others(tmp_path):
    rows = {"td3/hopper": ("dense", "rigl", "rlx2"), "td3/walker2d": ("dense", "rigl", "rlx2"), "td3/ant": ("dense",)}
    store.append(tmp_path, [line(arm, 0, 1.0, row) for row, arms in rows.items() for arm in arms])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    (heading,) = [row for row in text.splitlines() if row.endswith("together")]
    assert heading == "## TD3 on hopper, TD3 on walker2d together"
    assert cells(text[text.index(heading) :], "rigl")[1] == "2"


def test_rows_together_say_who_is_better_than_whom_and_leave_outliers_out(tmp_path):
    scores = {"dense": (100, 100, 100, 100), "rlx2": (100, 90, 100, 10)}
    rows = ("td3/hopper", "td3/ant")
    store.append(
        tmp_path,
        [line(arm, seed, float(s), row) for row in rows for arm, each in scores.items() for seed, s in enumerate(each)],
    )
    together = report.markdown(tmp_path, "table2", STUDIES["table2"]).split("together")[1]
    # Of two runs of RLx2 that are as good as dense ones, each counts half.
    assert cells(together, "dense")[5].startswith("0.25")
    assert cells(together, "rlx2")[2].startswith("75.0")
    assert cells(together, "rlx2")[4].startswith("95.0")


def test_a_searchs_report_says_what_it_found(tmp_path):
    lines = []
    score = lambda sparsity, seed: (100.0 if sparsity <= 0.95 else 50.0) + 0.1 * seed
    while (found := search.search(search.scores_of(lines), range(5))).missing is not None:
        sparsity, lacking = found.missing
        arm = f"rlx2@{sparsity:g}" if sparsity else "dense"
        lines += [line(arm, seed, score(sparsity, seed), study="frontier") for seed in lacking]
    store.append(tmp_path, lines)
    text = report.markdown(tmp_path, "frontier", STUDIES["frontier"])
    assert "Largest sparsity of the grid that keeps 97 % of the dense return: 95 %." in text
    assert cells(text, "95 %")[-1] == "kept"
    assert cells(text, "96 %")[-1] == "lost"


def test_a_band_is_of_the_runs_that_have_the_evaluation():
    axis = Figure().subplots()
    runs = [{"steps": [1, 2, 3], "return_mean": [1, 2, 3]}, {"steps": [1, 2], "return_mean": [3, 4]}]
    figures._band(axis, [{"evaluations": run} for run in runs], "return_mean", "k", "label")
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(axis.lines[0].get_ydata(), [2, 3, 3])


def test_a_curve_over_sparsities_is_drawn_whichever_arms_there_are(tmp_path):
    arms = ("rigl@0.9", "ss@0.95")
    store.append(tmp_path, [line(arm, seed, study="sparsity-curve") for arm in arms for seed in (0, 1)])
    report.write(tmp_path, "sparsity-curve", STUDIES["sparsity-curve"])
    assert (tmp_path / "td3-hopper-60000.png").exists()


def test_long_names_under_few_bars_are_broken():
    arms = {name: [line()] for name in ("dense", "rlx2@0.995", "winning-release", "fixed-16.7k", "rlx2 n_step=1")}
    estimates = {name: statistics.estimate(statistics.mean, [np.array([1.0])]) for name in arms}
    figure = figures.draw_arms(arms, estimates, None, "title", figures.arm_colors(list(arms), "rlx2@0.995"))
    labels = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    broken = ["winning-\nrelease\nn=1", "fixed-\n16.7k\nn=1", "rlx2\nn_\nstep=\n1\nn=1"]
    assert labels == ["dense\nn=1", "rlx2@0.995\nn=1", *broken]
    shown = [axis for axis in figure.axes[:-1] if axis.get_visible()]
    assert [axis.get_title() for axis in shown] == list(arms)


def apart(label, other, renderer):
    """Whether two labels of an axis do not touch: side by side, or, where they are slanted, one above the other."""
    boxes = [text.get_window_extent(renderer) for text in (label, other)]
    angle = math.radians(label.get_rotation())
    if not angle:
        return boxes[0].x1 < boxes[1].x0
    label.set_rotation(0)
    height = label.get_window_extent(renderer).height
    label.set_rotation(math.degrees(angle))
    # Each ends under its bar, so their lines are as far apart as the bars, seen at that angle.
    return (boxes[1].x1 - boxes[0].x1) * math.sin(angle) > height


@pytest.mark.parametrize("count", [2, 5, figures.SLANTED + 1, 12])
def test_long_names_under_bars_do_not_touch(count):
    names = [*(f"arm{i}" for i in range(count - 2)), "rlx2 evolve_interval=10000", "winning-release"]
    arms = {name: [line()] for name in names}
    estimates = {name: statistics.estimate(statistics.mean, [np.array([1.0])]) for name in names}
    figure = figures.draw_arms(arms, estimates, None, "", dict.fromkeys(names, "C0"))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    labels = figure.axes[-1].get_xticklabels()
    bare = lambda text: "".join(text.split())
    assert [bare(label.get_text()).rstrip(",n=1") for label in labels] == [bare(name).rstrip(",n=1") for name in names]
    assert all(apart(a, b, canvas.get_renderer()) for a, b in itertools.pairwise(labels))


def test_an_arm_has_one_colour_whichever_arms_have_runs(tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(figures, "_band", lambda axis, lines, column, color, name: used.append((name, color)))
    every = [arm.name for arm in STUDIES["table2"].arms(60_000)]
    store.append(tmp_path, [line(arm, 0, 1.0) for arm in every])
    store.append(tmp_path, [line(arm, 0, 1.0, gamma=0.9) for arm in ("set", "rlx2")])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert [name for name, _ in used] == [*every, "set", "set gamma=0.9", "rlx2", "rlx2 gamma=0.9"]
    assert len({(name.split()[0], color) for name, color in used}) == len({color for _, color in used}) == len(every)


@pytest.mark.parametrize("name", ["beyond", "table2", "tickets"])
def test_no_two_arms_have_one_colour(name):
    arms = [arm.name for arm in STUDIES[name].arms(60_000)]
    assert len(set(figures.arm_colors(arms, STUDIES[name].focus).values())) == len(arms)


def test_a_dense_agent_that_has_not_learned_is_no_measure(tmp_path):
    store.append(tmp_path, [line("dense", 0, -100.0), line("dense", 1, -110.0), line("rlx2", 0, -300.0)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert cells(text, "rlx2")[4] == cells(text, "rlx2")[6] == "-"


def test_one_run_has_no_interval(tmp_path):
    store.append(tmp_path, [line("dense", 0, 100.0), line("rlx2", 0, 90.0), line("ss", 0, 10.0)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert cells(text, "rlx2")[2:7] == ["90.0", "90.0", "90.0", "97", "-7.0"]
    assert cells(text, "ss")[7:10] == ["1.00", "-", "-"]


def test_no_interval_where_any_part_is_one_run(tmp_path):
    store.append(tmp_path, [line("dense", 0, 100.0), line("rlx2", 0, 90.0), line("rlx2", 1, 80.0)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert cells(text, "rlx2")[2].startswith("85.0 [")
    assert cells(text, "rlx2")[4] == "85.0"
    assert cells(text, "dense")[7] == "0.00"
    more = [line(arm, 0, 5.0, "td3/walker2d") for arm in ("dense", "rlx2")]
    store.append(tmp_path, more)
    together = report.markdown(tmp_path, "table2", STUDIES["table2"]).partition("together")[2]
    assert cells(together, "rlx2")[2:6] == ["92.5", "97.5", cells(together, "rlx2")[4], "-"]
    assert "[" not in cells(together, "rlx2")[4]
    assert cells(together, "dense")[2:5] == ["100", "-", "-"]


def test_the_papers_numbers_stand_beside_its_own_sparsities_alone(tmp_path):
    thinner = {"actor_sparsity": 0.5, "critic_sparsity": 0.5}
    store.append(tmp_path, [line(arm, 0, 1.0, **settings) for arm in ("dense", "rlx2") for settings in ({}, thinner)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert "together" not in text, "one task is not two"
    own, other = text.split("## TD3 on hopper, 60,000 steps")[1:]
    assert cells(own, "rlx2")[5] == "97"
    assert "98 % in the actor and 95 % in the critics" in own
    assert cells(other, "rlx2")[5:7] == ["-", "-"]
    assert "50 % in the actor and 50 % in the critics" in other


def test_agents_are_not_averaged(tmp_path):
    rows = ("td3/hopper", "td3/ant", "sac/hopper", "sac/ant")
    store.append(tmp_path, [line(arm, 0, 1.0, row) for row in rows for arm in ("dense", "rlx2")])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert [row for row in text.splitlines() if row.endswith("together")] == [
        "## TD3 on hopper, TD3 on ant together",
        "## SAC on hopper, SAC on ant together",
    ]


def test_clones_are_measured_by_their_teachers(tmp_path):
    teachers = [line("dense", k, 100.0 + k, "td3/ant", "tickets") for k in (0, 1)]
    clone = lambda k: line("clone-random", k, 50.0, "td3/ant", "tickets") | {"kind": "cloning"}
    store.append(tmp_path, [*teachers, clone(0), clone(1)])
    text = report.markdown(tmp_path, "tickets", STUDIES["tickets"])
    section = text[text.index("imitating the dense agent") :]
    assert cells(section, "clone-random")[4].startswith(f"{100 * 50 / 100.5:.1f} [")


def test_a_run_that_diverged_at_once_leaves_a_report(tmp_path):
    nothing = line("ss", 1, 0.0) | {"diverged": True, "evaluations": {"steps": []}}
    store.append(tmp_path, [line("ss", 0, 10.0), nothing])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert "(1 diverged" in cells((tmp_path / "README.md").read_text(), "ss")[1]


def test_dense_returns_stand_beside_published_ones(tmp_path):
    scores = [3000.0, 3100.0, 3400.0]
    store.append(tmp_path, [line("dense", k, s, "td3/Hopper-v4", "table2-mujoco") for k, s in enumerate(scores)])
    store.append(tmp_path, [line("dense", 0, 4000.0, "sac/Hopper-v4", "table2-mujoco")])
    text = report.markdown(tmp_path, "table2-mujoco", STUDIES["table2-mujoco"])
    td3, sac = text.split("The dense agent beside published ones:")[1:]
    assert cells(td3, "ours")[1:3] == ["3167", f"{np.std(scores, ddof=1):.0f}"]
    assert cells(td3, "ours")[3].startswith("3 seeds, 60,000 steps, Hopper-v4, mean of the last 30 evaluations")
    authors, tianshou = published.DENSE_RETURNS["td3/Hopper-v4"]
    td3 = td3.partition("## ")[0]
    assert cells(td3, authors.whose)[1:] == ["3299", "185", authors.protocol]
    assert cells(td3, tianshou.whose)[1:] == ["3472", "117", tianshou.protocol]
    assert cells(sac, "ours")[1:3] == ["4000", "-"]
    assert cells(sac, "Haarnoja et al., 2018b")[1:3] == ["3250", "-"]
    # And RLx2's size beside the paper's.
    assert set(published.DENSE_RETURNS) <= set(STUDIES["table2-mujoco"].rows)


def contrasted(**shares):
    """Lines of a study of dead inputs: shares of a dense return of 1000, on both rows, four seeds each."""
    found = []
    for row, place in (("td3/Ant-v3", 0), ("td3/Ant-v4", 1)):
        for arm, pair in {"dense": (1, 1), **shares}.items():
            found += [line(arm, k, 1000.0 * pair[place] + 5 * k, row, "ant-inputs") for k in range(4)]
    return found


def test_a_prediction_about_two_rows_holds_if_the_interval_of_the_difference_says_so(tmp_path):
    lines = contrasted(rlx2=(0.9, 0.6), ss=(0.5, 0.5001))
    dead = {"actor": [[300, 400], [20, 400]], "critic": [[60, 80], [10, 80]]}
    store.append(tmp_path, [each | ({"dead_inputs": dead} if each["row"] == "td3/Ant-v3" else {}) for each in lines])
    text = report.markdown(tmp_path, "ant-inputs", STUDIES["ant-inputs"])
    table = text.partition("## TD3 on Ant-v3 against Ant-v4, 60,000 steps")[2]
    shares = [100 * (1000 * share + 7.5) / 1007.5 for share in (0.9, 0.6)]
    rlx2, ss = cells(table, "rlx2"), cells(table, "ss")
    numbers = [f"{shares[0]:.1f}", f"{shares[1]:.1f}", f"+{shares[0] - shares[1]:.1f}"]
    assert [cell.split(" ")[0] for cell in rlx2[1:4]] == numbers
    assert rlx2[4:] == ["rises", "yes"] and ss[4:] == ["falls", "undecided: the interval holds 0"]
    before = text.partition("Links of the first layer")[2]
    assert cells(before.partition("##")[0], "rlx2")[2:] == [
        "300 of 400 (75.0 %)",
        "20 of 400 (5.0 %)",
        "60 of 80 (75.0 %)",
        "10 of 80 (12.5 %)",
    ]
    shutil.rmtree(tmp_path)
    store.append(tmp_path, contrasted(rlx2=(0.5, 0.8), ss=(0.2, 0.8)))
    table = report.markdown(tmp_path, "ant-inputs", STUDIES["ant-inputs"]).partition(" against Ant-v4")[2]
    assert (cells(table, "rlx2")[-1], cells(table, "ss")[-1]) == ("no, the contrary", "yes")


def test_a_difference_of_shares_is_that_of_its_samples():
    sample, dense = [np.array([3.0, 5.0]), np.array([1.0])], [np.array([4.0]), np.array([2.0, 8.0])]
    assert comparisons._difference(sample, dense) == pytest.approx(4 / 4 - 1 / 5)


def test_a_screening_lets_those_go_on_that_are_above_their_like_on_average(tmp_path):
    scores = {
        "td3/Hopper-v4": {"dense": 100, "dense-critic-norm": 120, "rlx2": 50, "sparser": 60, "5-step": 40},
        "td3/Walker2d-v4": {"dense": 100, "dense-critic-norm": 80, "rlx2": 40, "sparser": 36, "5-step": 44},
    }
    screened = {"total_steps": 300_000, "schedule_scale": 0.3, "warmup_steps": 25_000}
    lines = [
        line(arm, seed, float(score + seed), row, "beyond", **screened)
        for row, arms in scores.items()
        for arm, score in (arms | {"together": 90}).items()
        for seed in (0, 1)
    ]
    store.append(tmp_path, [*lines, line("8-batches", 0, 70.0, "td3/Hopper-v4", "beyond", **screened)])
    report.write(tmp_path, "beyond", STUDIES["beyond"])
    text = (tmp_path / "README.md").read_text()
    table = text.partition("## TD3, 300,000 steps: beside rlx2 and dense-critic-norm")[2]
    assert len(table.split("## ")[0].splitlines()[2].split("|")) == 10
    mean = 100 * np.mean([60.5 / 50.5, 36.5 / 40.5])
    assert cells(table, "sparser")[5].startswith(f"{mean:.1f} [")
    untold = ("rlx2", "dense", "8-batches", "together")
    expected = {"sparser": "goes on", "5-step": "does not", **dict.fromkeys(untold, "-")}
    assert {arm: cells(table, arm)[-1] for arm in expected} == expected
    assert cells(table, "dense")[1].startswith("199.0 [")
    # Runs of the final length are not screened.
    store.append(tmp_path, [line(arm, 0, 9.0, "td3/Hopper-v4", "beyond") for arm in ("dense", "rlx2", "together")])
    last = report.markdown(tmp_path, "beyond", STUDIES["beyond"]).partition("## TD3, 60,000 steps: beside rlx2")[2]
    assert "screening" not in last.partition("## ")[0] and cells(last, "together")[1] == "100.0"


def test_the_longest_runs_come_first_in_a_report(tmp_path):
    store.append(tmp_path, [line("rlx2", 0, 1.0, total_steps=steps) for steps in (100_000, 1_000_000, 300_000)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert re.findall(r"^## TD3 on hopper, (.*) steps", text, re.MULTILINE) == ["1,000,000", "300,000", "100,000"]


def test_findings_are_taken_over_and_a_diverged_run_is_told(tmp_path):
    store.append(tmp_path, [line("rlx2", 0, 1.0), line("rlx2", 1, 2.0) | {"diverged": True}])
    (tmp_path / report.FINDINGS).write_text("It was the **buffer**.\n")
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert "## What was found\n\nIt was the **buffer**.\n" in text
    assert cells(text, "rlx2")[1] == "2 (1 diverged, counted with the lowest evaluation)"


def test_scores_of_seeds_are_written_out(tmp_path):
    scores = (0.12345, 945.44, 3330.2, 10521.4, -20000.2)
    store.append(tmp_path, [line("rlx2", seed, score) for seed, score in enumerate(scores)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert cells(text, "rlx2")[-1] == "0.1235, 945.4, 3330, 10521, -20000"


@pytest.mark.parametrize("directory", sorted(RESULTS.glob(f"*/{store.FILE}")), ids=lambda path: path.parent.name)
def test_committed_reports_are_those_of_the_committed_runs(directory):
    directory = directory.parent
    study = STUDIES[directory.name]
    for run in store.read(directory):
        unit = "env_steps" if run["kind"] == "learning" else "updates"
        assert run[unit] > 0
        assert {"agent", "env", "backend", "method", "actor_sparsity", "critic_sparsity", "seed", "score"} <= set(run)
    assert (directory / "README.md").read_text() == report.markdown(directory, directory.name, study)
    pictures = sorted(directory.glob("*.png"))
    linked = {word.partition(")")[0] for word in (directory / "README.md").read_text().split("](")[1:]}
    assert {name for name in linked if name.endswith(".png")} == {picture.name for picture in pictures} != set()
    digests = report.digests(directory)
    for picture in pictures:
        stem = max((stem for stem in digests if picture.name.startswith(stem)), key=len)
        assert PIL.Image.open(picture).text["Source"] == digests[stem], f"{picture} is not of these runs"


def test_pictures_change_with_the_runs_of_their_section_alone(tmp_path):
    runs = [line("rlx2", 0, 1.0), line("dense", 0, 2.0), line("rlx2", 0, 1.0, row="td3/ant")]
    store.append(tmp_path, runs)
    report.write(tmp_path, "table2", STUDIES["table2"])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    store.append(tmp_path, [line("rlx2", 1, 3.0)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    changed = {name for name, picture in before.items() if (tmp_path / name).read_bytes() != picture}
    assert changed == {name for name in before if "hopper" in name} < set(before)


both_ways = pytest.mark.parametrize("laboratory", ["processes", "shard_map"], indirect=True)
"""With clones made by workers, and in this process."""


@pytest.fixture
def laboratory(request, monkeypatch, tmp_path):
    """A place to run studies in, where runs and clones take no time; what was made is told in order.

    Sweeps in a directory named in `broken` make nothing: a worker dies, or (True) it is asked to stop.
    """
    made, broken = [], {}

    def finish(directory, config, rows, **more):
        directory.mkdir(parents=True)
        files.write_json(directory / "config.json", config.to_dict())
        files.write_json_lines(directory / "metrics.jsonl", rows)
        about = policies.describe(config, 5, 1.0) | {"made": len(made)}
        # No two runs leave the same masks, which are as many links as their configuration makes.
        trees = {}
        for name, own in structure(config, 4, 4).items():
            lead = (2,) if name == "critic" else ()
            trees[name] = {}
            for i, ((rows, columns), count) in enumerate(zip(own.shapes, own.links, strict=True)):
                row = np.roll(np.arange(rows * columns) < count, len(made)).reshape(rows, columns)
                trees[name][f"Dense_{i}"] = {"kernel": np.broadcast_to(row, (*lead, rows, columns))}
        tickets.save(directory / "masks.npz", trees, trees, about)
        zeros = lambda *shape: np.zeros(shape, np.float32)
        shapes = structure(config, 4, 4)["actor"].shapes
        params = {f"Dense_{i}": {"kernel": zeros(*shape), "bias": zeros(shape[1])} for i, shape in enumerate(shapes)}
        policies.save(directory / "policy.npz", params, about)
        files.write_json(directory / "summary.json", {"finished": True, **more})

    def sweep(configs, workdir, *, on_table, **options):
        dead = next((name for name in broken if name in str(workdir)), None)
        if dead is not None:
            if broken[dead]:
                signal.raise_signal(signal.SIGTERM)
            return mock.Mock(finished=False)
        held = plans.read(workdir)
        plan = plans.lay_out(configs, parallel="processes", held=held)
        workdir.mkdir(parents=True, exist_ok=True)
        plans.write(workdir, plan)
        lines = [{"run": run.name, "finished": True, "diverged": False} for run in plan.runs]
        for run in plan.runs:
            directory = workdir / "runs" / run.name
            if not directory.exists():
                made.append((run.config.method, run.config.topology, bool(run.config.ticket), run.config.seed))
                finish(directory, run.config, [{"env_steps": 5, "return_mean": 1.0, "return_std": 0.0}])
        files.write_json(workdir / "sweep.json", lines)
        on_table(plan, lines)
        return mock.Mock(finished=True)

    def clone(config, teacher, workdir, *, overwrite, say):
        made.append(("clone", config.topology, bool(config.ticket), config.seed))
        if config.seed == 7:
            raise DivergedError("diverged.")
        rows = [{"updates": 5, "return_mean": 1.0, "return_std": 0.0}]
        finish(workdir, config, rows, teacher=teacher.about["made"])

    def work(tasks, count, stop, ended):
        for task in tasks:

            def say(line):
                if stop.received:
                    raise KeyboardInterrupt

            code, error, teacher = 0, "", policies.load(task.teacher)
            try:
                runner.cloning.clone(task.config, teacher, task.workdir, overwrite=True, say=say)
            except RlxError as problem:
                code = workers.DIVERGED if isinstance(problem, DivergedError) else workers.REFUSED
                error = str(problem).rstrip(".")
            except KeyboardInterrupt:
                code = -signal.SIGTERM
            ended(workers.End(task, code, error))
            if stop.received:
                return

    monkeypatch.setattr(runner, "sweep", sweep)
    monkeypatch.setattr(plans, "build", lambda configs: None)
    monkeypatch.setattr(runner.cloning, "clone", clone)
    monkeypatch.setattr(runner.workers, "work", work)
    parallel = getattr(request, "param", "processes")
    return runner.Place(tmp_path / "results" / "tickets", tmp_path / "work", parallel), made, broken


CLONES = ("clone-dynamic", "clone-random", "clone-winning", "clone-winning-release")


def conducted(laboratory, seeds, arms=(), study="tickets", **settings):
    """Conduct a study; what was made by it, and what it said."""
    place, made, _ = laboratory
    del made[:]
    said = []
    wanted = runs(STUDIES[study], ["td3/ant"], seeds, {"total_steps": 60_000, **settings}, arms)
    assert runner.run_study(STUDIES[study], wanted, place, said.append)
    return list(made), said


def test_a_signal_while_the_last_runs_of_a_row_finish_keeps_the_next_row_back(laboratory, monkeypatch):
    place, made, _ = laboratory
    sweep = runner.sweep

    def late(*arguments, **options):
        with StopSignals():
            signal.raise_signal(signal.SIGINT)
            return sweep(*arguments, **options)

    monkeypatch.setattr(runner, "sweep", late)
    wanted = runs(STUDIES["table2"], ["td3/ant", "td3/hopper"], [0], {"total_steps": 60_000}, ["dense", "rlx2"])
    assert not runner.run_study(STUDIES["table2"], wanted, place, print)
    assert len(made) == len(store.read(place.directory)) == 2


@pytest.mark.parametrize(("stopped", "made_of_the_second"), [(False, 4), (True, 0)])
def test_a_worker_that_dies_keeps_no_other_row_and_a_stop_keeps_all(laboratory, stopped, made_of_the_second):
    place, made, broken = laboratory
    broken["td3-ant"] = stopped
    wanted = runs(STUDIES["table2"], ["td3/ant", "td3/hopper"], [0, 1], {"total_steps": 60_000}, ["dense", "rlx2"])
    assert not runner.run_study(STUDIES["table2"], wanted, place, print)
    assert len(made) == len(store.read(place.directory)) == made_of_the_second


def test_a_search_that_gets_no_further_ends(laboratory):
    place, _, broken = laboratory
    broken["td3-ant"] = False
    wanted = runs(STUDIES["frontier"], ["td3/ant"], range(5), {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["frontier"], wanted, place, print)


@both_ways
def test_stages_come_in_order_and_nothing_is_made_twice_when_a_study_grows(laboratory):
    place, *_ = laboratory
    made, said = conducted(laboratory, [0])
    assert sorted(said) == [f"{arm}, seed 0: return 1.0 at its end" for arm in CLONES]
    kinds = [run[:3] for run in made]
    assert sorted(kinds[:3]) == [("dense", "fixed", False), ("rlx2", "fixed", False), ("rlx2", "gradient", False)]
    assert kinds[3:5] == [("rlx2", "fixed", True)] * 2
    assert len(made) == len({run["arm"] for run in store.read(place.directory)}) == 9
    assert conducted(laboratory, [0]) == ([], [])
    more, _ = conducted(laboratory, [0, 1])
    assert len(more) == 9
    assert {run[-1] for run in more} == {1}
    # Another length is another place; a part of what is there, or its order, is no reason to complain.
    assert len(conducted(laboratory, [0], total_steps=90_000)[0]) == 9
    assert conducted(laboratory, [1], ["dynamic", "winning"]) == ([], [])
    assert len(store.read(place.directory)) == 27


@both_ways
def test_a_ticket_is_that_of_its_own_arm_and_seed_and_so_is_a_teacher(laboratory):
    place, *_ = laboratory
    conducted(laboratory, [0, 1])
    (home,) = place.workdir.iterdir()
    configs = {path.parent: files.read_json(path, {}) for path in home.glob("stage-0/runs/*/config.json")}

    def found(seed, **settings):
        (run,) = (p for p, c in configs.items() if c["seed"] == seed and all(c[k] == v for k, v in settings.items()))
        return run

    lines = {(run["arm"], run["seed"]): run["config"] for run in store.read(place.directory)}
    for seed in (0, 1):
        dynamic, clone = found(seed, topology="gradient"), home / "clones" / f"clone-dynamic-seed{seed}"
        for arm, source in {"winning": dynamic, "clone-winning": clone}.items():
            for name in (arm, f"{arm}-release"):
                assert lines[name, seed]["ticket"] == tickets.digest(source)
        taught = policies.load(found(seed, method="dense") / "policy.npz").about["made"]
        for clone in home.glob(f"clones/*-seed{seed}"):
            assert files.read_json(clone / "summary.json", {})["teacher"] == taught


def test_a_search_looks_at_its_own_runs_alone(laboratory):
    short, _ = conducted(laboratory, range(5), study="frontier")
    longer, _ = conducted(laboratory, range(5), study="frontier", total_steps=90_000)
    assert len(longer) == len(short) > 5


def test_a_study_is_extended_where_its_runs_files_are_gone(laboratory):
    place, *_ = laboratory
    conducted(laboratory, [0])
    shutil.rmtree(place.workdir)
    assert conducted(laboratory, [0]) == ([], [])
    made, _ = conducted(laboratory, [0, 1])
    assert {run[-1] for run in made} == {1}
    assert len(made) == 9


@both_ways
def test_a_clone_that_diverges_is_recorded_and_what_needs_it_is_left_out(laboratory):
    place, *_ = laboratory
    _, said = conducted(laboratory, [7])
    assert any("clone-winning, seed 7, is left out: clone-dynamic of that seed did not finish" in line for line in said)
    kept = {run["arm"]: run for run in store.read(place.directory)}
    assert kept["clone-dynamic"]["diverged"]
    assert "clone-winning" not in kept
    assert not kept["winning"]["diverged"]
    # It would diverge again.
    assert conducted(laboratory, [7])[0] == []


@both_ways
def test_a_clone_that_is_asked_to_stop_stops_all_and_is_made_again(laboratory, monkeypatch):
    place, made, _ = laboratory
    clone = runner.cloning.clone

    def stopped(config, teacher, workdir, *, overwrite, say):
        signal.raise_signal(signal.SIGTERM)
        say("update 5: return 1")
        raise AssertionError("it went on")

    monkeypatch.setattr(runner.cloning, "clone", stopped)
    said = []
    wanted = runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["tickets"], wanted, place, said.append)
    assert not [line for line in said if "makes it again" in line]
    assert len(made) == len(store.read(place.directory)) == 5
    monkeypatch.setattr(runner.cloning, "clone", clone)
    assert [run[0] for run in conducted(laboratory, [0])[0]] == ["clone"] * 4


@both_ways
def test_a_clone_that_cannot_be_made_says_why_and_keeps_nothing_else(laboratory, monkeypatch):
    place, *_ = laboratory
    monkeypatch.setattr(runner.cloning, "clone", mock.Mock(side_effect=ConfigError("it cannot be; mend it.")))
    said = []
    wanted = runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["tickets"], wanted, place, said.append)
    assert "clone-random, seed 0: it cannot be; mend it" in said
    assert "clone-dynamic, seed 0: it cannot be; mend it" in said
    assert not [line for line in said if "makes it again" in line]
    assert len(store.read(place.directory)) == 5


def test_a_clone_whose_worker_died_is_made_again_and_keeps_no_other(laboratory, monkeypatch):
    place, *_ = laboratory
    work = runner.workers.work

    def deadly(tasks, count, stop, ended):
        for task in tasks:
            if "dynamic" in task.name:
                ended(workers.End(task, -signal.SIGKILL, ""))
            else:
                work([task], count, stop, ended)

    monkeypatch.setattr(runner.workers, "work", deadly)
    said = []
    wanted = runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000})
    assert not runner.run_study(STUDIES["tickets"], wanted, place, said.append)
    assert "clone-dynamic, seed 0: its worker was ended by SIGKILL; the same command makes it again" in said
    assert {run["arm"] for run in store.read(place.directory)} & set(CLONES) == {"clone-random"}
    monkeypatch.setattr(runner.workers, "work", work)
    assert [run[0] for run in conducted(laboratory, [0])[0]] == ["clone"] * 3


@both_ways
def test_two_studies_do_not_make_the_same_runs_at_once(laboratory, monkeypatch):
    place, made, _ = laboratory
    conducted(laboratory, [0])
    del made[:]
    (row,) = place.workdir.iterdir()
    hold = lock.hold
    monkeypatch.setattr(lock, "hold", lambda directory: hold(directory, 0.0))
    with hold(row), pytest.raises(WorkdirError, match="in use by another process"):
        conducted(laboratory, [0, 1])
    assert not made


def test_a_runs_record_is_gathered_from_its_files_without_training(laboratory):
    place, made, _ = laboratory
    conducted(laboratory, [0])
    shutil.rmtree(place.directory)
    del made[:]
    runner.gather(runs(STUDIES["tickets"], ["td3/ant"], [0], {"total_steps": 60_000}), place)
    assert len(store.read(place.directory)) == 9
    assert not made


def test_a_command_is_kept_without_places_on_this_machine(monkeypatch):
    places = ["--workdir=/home/me", "--results", "/tmp/r", "--ticket=/home/me/found"]
    given = ["/home/me/x/experiments/train.py", "--seed=1", *places, "--env=ant"]
    monkeypatch.setattr("sys.argv", given)
    assert provenance.command() == "python experiments/train.py --seed=1 --env=ant"
    monkeypatch.setattr("sys.argv", [])  # Of an interpreter inside another program.
    assert provenance.command() == "python"


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
        (["--study=table2", "--dry_run", "--workers=0"], "workers=0: this process may use"),
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
