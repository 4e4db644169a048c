"""Studies: pictures of the recorded runs."""

import itertools
import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from paper import STUDIES, figures, report, store

from rlx2_jax.analysis import statistics
from tests.study_lines import line


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
    broken = ["rlx2@\n0.995\nn=1", "winning-\nrelease\nn=1", "fixed-\n16.7k\nn=1", "rlx2\nn_\nstep=\n1\nn=1"]
    assert labels == ["dense\nn=1", *broken]
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


@pytest.mark.parametrize(
    "names",
    [
        *([f"arm{i}" for i in range(n)] + ["rlx2 evolve_interval=10000", "winning-release"] for n in (0, 3, 4, 10)),
        [f"recipe@0.9{i}" for i in range(figures.SLANTED)],
    ],
    ids=len,
)
def test_long_names_under_bars_do_not_touch(names):
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


def test_pictures_change_with_the_runs_of_their_section_alone(tmp_path):
    runs = [line("rlx2", 0, 1.0), line("dense", 0, 2.0), line("rlx2", 0, 1.0, row="td3/ant")]
    store.append(tmp_path, runs)
    report.write(tmp_path, "table2", STUDIES["table2"])
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.png")}
    store.append(tmp_path, [line("rlx2", 1, 3.0)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    changed = {name for name, picture in before.items() if (tmp_path / name).read_bytes() != picture}
    assert changed == {name for name in before if "hopper" in name} < set(before)


def test_a_report_leaves_no_picture_of_an_earlier_one(tmp_path):
    store.append(tmp_path, [line("rlx2", 0, 1.0), line("rlx2", 0, 1.0, gamma=0.9)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"td3-hopper-60000.png", "td3-hopper-60000-2.png"}
    store.append(tmp_path, [line("dense", 0, 1.0), line("ss", 0, 1.0)])
    report.write(tmp_path, "table2", STUDIES["table2"])
    assert {path.name for path in tmp_path.glob("*.png")} == {"td3-hopper-60000.png", "td3-hopper-60000-variants.png"}
