"""Studies: what stands beside a report's sections."""

import shutil

import numpy as np
import pytest
from paper import STUDIES, comparisons, published, report, store

from tests.study_lines import cells, line


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


def test_a_row_stands_beside_others_once_for_each_of_its_sparsities(tmp_path):
    for share, sparsity in ((0.5, {}), (0.25, {"actor_sparsity": 0.99, "critic_sparsity": 0.99})):
        arms = {"rlx2": share, "ss": share / 5, "dense": 1}
        store.append(
            tmp_path,
            [
                line(arm, k, 1000.0 * a, row, "ant-inputs", **sparsity)
                for row in ("td3/Ant-v3", "td3/Ant-v4")
                for arm, a in arms.items()
                for k in range(4)
            ],
        )
    tables = report.markdown(tmp_path, "ant-inputs", STUDIES["ant-inputs"]).split("against Ant-v4, 60,000 steps")[1:]
    assert [cells(table, "rlx2")[1].split(" ")[0] for table in tables] == ["50.0", "25.0"]


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
    # Nor does anything go on by another reference than the rule's.
    others = [each for each in lines if each["arm"] in ("dense-critic-norm", "sparser")]
    store.append(tmp_path / "others", others)
    table = report.markdown(tmp_path / "others", "beyond", STUDIES["beyond"]).partition(": beside dense-critic-norm")[2]
    assert cells(table, "sparser")[-1] == "-"
    # Runs of the final length are not screened.
    store.append(tmp_path, [line(arm, 0, 9.0, "td3/Hopper-v4", "beyond") for arm in ("dense", "rlx2", "together")])
    last = report.markdown(tmp_path, "beyond", STUDIES["beyond"]).partition("## TD3, 60,000 steps: beside rlx2")[2]
    assert "screening" not in last.partition("## ")[0] and cells(last, "together")[1] == "100.0"
