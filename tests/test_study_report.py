"""Studies: what a report says of the recorded runs."""

import re

import numpy as np
import PIL.Image
import pytest
from paper import STUDIES, pictures, report, search, sections, store

from rlx2_jax.analysis import statistics
from rlx2_jax.config import presets
from tests.conftest import ROOT
from tests.study_lines import cells, line

RESULTS = ROOT / "experiments" / "results"


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
    found = sections.groups([*alike, *others])
    assert [len(group.lines) for group in found] == [2, 1, 1, 1, 1, 1, 1]
    # A setting that is named and is the default is no other condition.
    assert len(sections.groups([*alike, line(gamma=0.99)])) == 1


def test_sections_of_the_same_row_and_length_are_told_apart_by_their_settings(tmp_path):
    store.append(tmp_path, [line(), line(gamma=0.9), line(gamma=0.9, batch_size=64), line(total_steps=120_000)])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert [row for row in text.splitlines() if row.startswith("## TD3")] == [
        "## TD3 on hopper, 120,000 steps",
        "## TD3 on hopper, 60,000 steps, batch_size 256, gamma 0.99",
        "## TD3 on hopper, 60,000 steps, batch_size 256, gamma 0.9",
        "## TD3 on hopper, 60,000 steps, batch_size 64, gamma 0.9",
    ]


def test_a_record_that_is_older_than_a_setting_has_its_default(tmp_path):
    old = [line(arm, 0, score) for arm, score in (("dense", 100.0), ("rlx2", 90.0))]
    for made in old:
        del made["config"]["score_batches"]
    newer = [line("rlx2", 0, 80.0, score_batches=4), line("dense", 1, 70.0, gamma=0.9), line("ss", 1, 60.0, gamma=0.9)]
    store.append(tmp_path, [*old, *newer])
    text = report.markdown(tmp_path, "table2", STUDIES["table2"])
    assert cells(text, "score_batches=4")[3] == "80.0"


@pytest.mark.parametrize("last", ["from-0", "dense"])
def test_a_time_that_arms_set_is_none_of_the_section(tmp_path, last):
    arms = ("from-0.1", *{"from-0", "dense"} - {last}, last)
    store.append(tmp_path, [line(arm, 0, 1.0, "td3/Hopper-v4", "delay", total_steps=1_000_000) for arm in arms])
    assert "n_step_delay by arm" in report.markdown(tmp_path, "delay", STUDIES["delay"])


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


def test_a_variant_is_compared_on_the_seeds_that_both_have(tmp_path):
    arms = [line(arm, k, 100.0) for arm in ("dense", "rlx2") for k in (0, 1)]
    store.append(tmp_path, [*arms, *(line("rlx2", k, 100.0 + 50 * (k > 1), n_step=1) for k in range(4))])
    found = cells(report.markdown(tmp_path, "table2", STUDIES["table2"]), "n_step=1")
    assert found[2:6] == ["4", "125 [100, 150]", "100 [100, 100]", "100.0 [100.0, 100.0]"]
    assert found[6] == "1.00"


def test_pictures_of_earlier_reports_are_removed_and_no_others(tmp_path):
    for name in ("td3-hopper-500.png", "mine.png"):
        (tmp_path / name).write_bytes(b"")
    store.append(tmp_path, [line()])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["mine.png", "td3-hopper-60000.png"]


def test_a_condition_that_settings_no_longer_have_is_told_as_recorded(tmp_path):
    old = [{**line(seed=k), "conditions": {"total_steps": 60_000, "gone": k}} for k in (0, 1)]
    store.append(tmp_path, [{**each, "config": {**each["config"], "gone": k}} for k, each in enumerate(old)])
    assert "## TD3 on hopper, 60,000 steps, gone 1" in report.markdown(tmp_path, "table2", STUDIES["table2"])


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
    (section,) = sections.sections(lines)
    panels = pictures.draw(section, STUDIES["frontier"])[""].subfigs[0].axes
    assert [panel.get_title() for panel in panels] == ["dense", "rlx2@0.95", "rlx2@0.96", "rlx2@0.98"]


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
