"""Studies: which runs they are."""

import numpy as np
import pytest
from paper import STUDIES, factors, plan, published, store

from rlx2_jax import envs
from rlx2_jax.config import presets
from rlx2_jax.errors import ConfigError
from rlx2_jax.networks.structure import structure


def test_the_papers_numbers_are_those_of_its_averages_and_agree_between_its_tables():
    averages = {
        "td3": {"tiny": 57.0, "ss": 59.3, "set": 65.2, "rigl": 71.4, "rlx2": 99.7},
        "sac": {"tiny": 76.9, "ss": 72.4, "set": 93.6, "rigl": 93.2, "rlx2": 105.2},
    }
    for agent, by_arm in averages.items():
        rows = [row for row in published.TABLE_2 if row.startswith(agent)]
        assert len(rows) == 4
        for arm, average in by_arm.items():
            assert np.mean([published.TABLE_2[row][arm] for row in rows]) == pytest.approx(average, abs=0.051)
    for row, numbers in STUDIES["table3-topology"].paper.items():
        assert numbers["rlx2"] == published.TABLE_2[row]["rlx2"] == STUDIES["table3-nstep"].paper[row]["3-step"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_has_distinct_runs_of_every_arm_row_and_seed(name):
    study = STUDIES[name]
    found = plan.runs(study, study.rows, [0, 1], {"total_steps": 60_000})
    arms = study.arms(60_000)
    assert len(found) == len(study.rows) * len(arms) * 2
    assert len({(store.identity(run.config), run.needs) for run in found}) == len(found)
    assert study.focus in {arm.name for arm in arms}
    for row, numbers in study.paper.items():
        assert row in study.rows
        assert set(numbers) <= {arm.name for arm in arms}


def test_rows_bring_table_2s_sparsities_and_settings_override_them():
    row = lambda **settings: plan.runs(STUDIES["table2"], ["sac/ant"], [0], settings, ["rlx2"])[0].config
    assert (row().actor_sparsity, row().critic_sparsity, row().total_steps) == (0.90, 0.75, 3_000_000)
    assert row(critic_sparsity=0.5).critic_sparsity == 0.5
    other = plan.runs(STUDIES["table2"], ["td3/inverted_pendulum"], [0], {"total_steps": 60_000}, ["rlx2"])[0].config
    assert (other.env, other.agent, other.actor_sparsity) == ("inverted_pendulum", "td3", 0.9)


def test_the_3_step_agent_of_one_study_is_the_rlx2_of_another():
    settings = {"total_steps": 60_000}
    of = lambda study, arm: store.identity(plan.runs(STUDIES[study], ["td3/ant"], [2], settings, [arm])[0].config)
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
    found = {run.arm: run.config.to_dict() for run in plan.runs(STUDIES[study], ["td3/hopper"], [0], {})}
    focus = found[STUDIES[study].focus]
    # Where it is not about methods, those of other methods are whole agents to compare with.
    methods = {"tiny", "ss", "set", "rlx2"} if "method" in about else {"rlx2"}
    ablations = [values for values in found.values() if values["method"] in methods]
    assert {name for values in ablations for name in values if values[name] != focus[name]} == about


MUJOCO = [name for name, study in STUDIES.items() if study.settings]


@pytest.mark.parametrize("name", MUJOCO)
def test_points_in_time_are_the_papers_own_on_its_own_tasks(name):
    study = STUDIES[name]
    for run in plan.runs(study, study.rows, [0], {}):
        c = run.config
        assert (c.total_steps, c.num_envs, c.kernel_init) == (1_000_000, 2, "release")
        assert (c.warmup_steps, c.evolve_interval, c.buffer_check_interval) == (25_000, 10_000, 10_000)
        assert c.n_step_delay == 300_000 or name == "delay"
        assert c.buffer_min == (100_000 if c.agent == "td3" else 200_000)
        assert (c.eval_every, c.score_evaluations, c.eval_episodes) == (5000, 30, 10)


def test_a_studys_settings_give_way_to_those_asked_for():
    row = lambda **settings: plan.runs(STUDIES["table2-mujoco"], ["td3/Hopper-v4"], [0], settings, ["rlx2"])[0].config
    longer = row(total_steps=3_000_000, kernel_init="lecun", num_envs=20)
    assert (longer.total_steps, longer.kernel_init, longer.num_envs) == (3_000_000, "lecun", 20)
    assert (longer.n_step_delay, longer.evolve_interval) == (300_000, 10_000)
    assert (row().actor_sparsity, row().critic_sparsity) == (0.98, 0.95)


def test_rows_and_arms_on_the_papers_own_tasks_come_in_the_order_of_their_worth():
    study = STUDIES["table2-mujoco"]
    found = plan.runs(study, study.rows, range(study.seeds), {})
    tasks = ("Hopper-v4", "Ant-v3", "HalfCheetah-v4", "Walker2d-v4")
    assert list(dict.fromkeys(run.row for run in found)) == [f"{a}/{t}" for a in ("td3", "sac") for t in tasks]
    assert list(dict.fromkeys(run.arm for run in found)) == ["rlx2", "dense", "rigl", "ss", "set", "tiny"]
    assert len(found) == 8 * 6 * 5
    assert study.paper["td3/Ant-v3"] == published.TABLE_2["td3/ant"] and set(study.paper) == set(study.rows)


def test_studies_on_the_papers_own_tasks_share_their_runs():
    of = lambda study, arm: store.identity(plan.runs(STUDIES[study], ["td3/Ant-v3"], [2], {}, [arm])[0].config)
    for arm in ("dense", "ss", "rlx2"):
        assert of("ant-inputs", arm) == of("table2-mujoco", arm)
    assert of("delay", "dense") == of("beyond", "dense") == of("table2-mujoco", "dense")
    assert of("delay", "from-0.3") == of("table2-mujoco", "rlx2") != of("delay", "from-0.1")
    both = plan.runs(STUDIES["ant-inputs"], STUDIES["ant-inputs"].rows, [0], {}, ["rlx2"])
    assert {(run.config.actor_sparsity, run.config.critic_sparsity) for run in both} == {(0.96, 0.88)}


def links(config):
    """Links of an actor and of a critic."""
    task = envs.make(config.env, config.backend)
    found = structure(config, task.observation_size, task.action_size)
    return sum(found["actor"].links), sum(found["critic"].links)


@pytest.mark.parametrize("row", STUDIES["beyond"].rows)
def test_every_arm_beyond_the_paper_has_half_of_its_size(row):
    (paper,) = plan.runs(STUDIES["table2-mujoco"], [row], [0], {}, ["rlx2"])
    found = {run.arm: run.config for run in plan.runs(STUDIES["beyond"], [row], [0], {})}
    size = lambda config: sum(n * count for n, count in zip((2, 4), links(config), strict=True))
    assert 2 * size(found["rlx2"]) == pytest.approx(size(paper.config), rel=2e-3)
    for arm, config in found.items():
        if config.method != "dense":
            # What rounding of three matrices comes to, in two actors and four critics.
            assert abs(size(config) - size(found["rlx2"])) <= 9, arm
    actor, critic = links(found["critic-heavier"])
    assert actor == pytest.approx(links(found["rlx2"])[0] / 2, abs=2) and critic > links(found["rlx2"])[1]


def test_the_arithmetic_of_hopper_is_that_of_the_documents():
    found = {run.arm: run.config for run in plan.runs(STUDIES["beyond"], ["td3/Hopper-v4"], [0], {})}
    heavier = found["critic-heavier"]
    assert heavier.actor_sparsity == 0.995
    assert 1 - heavier.critic_sparsity == pytest.approx(0.025 + 0.5 * 2 * 69_120 * 0.01 / (4 * 69_376), abs=1e-6)
    actor, critic = links(found["rlx2"])
    assert (actor, critic) == (691, 1734)
    assert round(100 * 4 * critic / (2 * actor + 4 * critic)) == 83


def test_each_factor_is_rlx2_with_one_change_and_together_they_are_all():
    arms = {arm.name: arm for arm in STUDIES["beyond"].arms(1)}
    for name, factor in factors.FACTORS.items():
        assert arms[name].settings == {"method": "rlx2", **factor.settings} and arms[name].fitted is factor.fitted
    screened = [factors.FACTORS[name] for name in factors.SCREENED]
    assert arms["together"].settings == {k: v for factor in screened for k, v in factor.settings.items()}
    assert arms["together"].fitted is factors.critic_heavier
    assert arms["dense-critic-norm"].settings == {"method": "dense", "critic_network": "layernorm"}


def test_a_search_may_go_with_factors(monkeypatch):
    monkeypatch.setattr(factors, "RECIPE", ("sparser", "5-step"))
    arms = {arm.name: arm.settings for arm in STUDIES["beyond-frontier"].arms(1)}
    thin = {"actor_sparsity": 0.99, "critic_sparsity": 0.99}
    assert arms["recipe@0.99"] == {"method": "sparser", "n_step": 5, **thin}
    assert arms["dense"] == {"method": "dense"}


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
    at = lambda study, row, **settings: plan.runs(STUDIES[study], [row], [0], settings, ["rlx2"])[0].config.eval_every
    assert at("table2", "td3/hopper") == at("table2-mujoco", "td3/Hopper-v4") == at("table2", "sac/ant") == 5000
    assert at("table2", "td3/hopper", eval_every=25_000) == 25_000, "what is asked for is taken as asked"
    assert at("table2", "td3/hopper", total_steps=8_000) == 2_000


def test_only_what_changes_a_run_is_a_condition():
    (plain,) = plan.runs(STUDIES["table2"], ["td3/hopper"], [0], {"total_steps": 500_000}, ["rlx2"])
    derived = {"total_steps": 500_000, "eval_every": plain.config.eval_every, "kernel_init": "release"}
    (same,) = plan.runs(STUDIES["table2"], ["td3/hopper"], [0], derived, ["rlx2"])
    assert (same.config, same.conditions) == (plain.config, plain.conditions)
    # The default of one arm alone.
    (other,) = plan.runs(STUDIES["table2"], ["td3/hopper"], [0], {"total_steps": 500_000, "n_step": 3}, ["rlx2"])
    assert other.config == plain.config
    assert other.conditions["n_step"] == 3


@pytest.mark.parametrize("reading", ["release", "paper"])
@pytest.mark.parametrize("study", ["tickets", "mask-quality"])
def test_a_reading_gives_way_to_what_an_arm_sets(study, reading):
    found = plan.runs(STUDIES[study], ["td3/hopper"], [0], {}, reading=presets.READINGS[reading])
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
        plan.check(plan.runs(STUDIES["table3-nstep"], rows, [0], settings, arms))


def test_a_search_chooses_its_arms_itself():
    with pytest.raises(ConfigError, match="chooses its arms itself; leave it out"):
        plan.runs(STUDIES["frontier"], ["td3/hopper"], [0], {}, ["dense"])
