"""Pictures of several runs: what stands in one panel, what makes one curve, and what it is called."""

import numpy as np
import pytest

from rlx2_jax.config import Config, resolve
from rlx2_jax.training.workdirs import identity
from rlx2_jax.viz import comparison, curves


def run(name="run", *, level=1.0, steps=(400, 800), **changes):
    """A run with a constant return."""
    rows = [{"env_steps": k, "return_mean": level, "return_std": 0.5} for k in steps]
    return comparison.DrawnRun(
        name,
        identity(resolve(Config(total_steps=100_000) if not changes else Config(**{"total_steps": 100_000} | changes))),
        rows,
    )


def test_each_task_and_agent_has_a_panel_and_seeds_stand_together():
    runs = [
        run(env=env, agent=agent, seed=seed) for env in ("hopper", "ant") for agent in ("td3", "sac") for seed in (0, 1)
    ]
    runs.append(run(env="ant", backend="mjx"))
    panels = comparison.arrange(runs)
    assert list(panels) == [
        "TD3 on hopper (generalized)", "SAC on hopper (generalized)", "TD3 on ant (generalized)",
        "SAC on ant (generalized)", "TD3 on ant (mjx)",
    ]  # fmt: skip
    assert [len(groups["rlx2"]) for groups in panels.values()] == [2, 2, 2, 2, 1]
    figure = comparison.draw(panels)
    assert [axis.get_title() for axis in figure.axes if axis.get_visible()] == list(panels)


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ([{}], ["rlx2"]),
        ([{"method": "dense"}, {"method": "rlx2"}], ["dense", "rlx2"]),
        ([{"gamma": 0.9}, {"gamma": 0.99}], ["gamma 0.9", "gamma 0.99"]),
        ([{"total_steps": 100_000}, {"total_steps": 200_000}], ["total_steps 100000", "total_steps 200000"]),
        ([{"actor_sparsity": 0.5}, {"critic_sparsity": 0.5}], ["50 % / 90 % sparse", "90 % / 50 % sparse"]),
        (
            [{"method": "dense"}, {"actor_sparsity": 0.5}, {}],
            ["dense", "rlx2, 50 % / 90 % sparse", "rlx2, 90 % / 90 % sparse"],
        ),
        (
            [{"actor_sparsity": share, "critic_sparsity": 0.5} for share in (0.9951, 0.9954)],
            ["99.51 % / 50 % sparse", "99.54 % / 50 % sparse"],
        ),
        ([{"hidden": (8, 8)}, {"hidden": (16,)}], ["hidden 8x8", "hidden 16"]),
    ],
)
def test_a_label_names_what_differs_and_nothing_else(changes, labels):
    (groups,) = comparison.arrange([run(env="ant", **each) for each in changes]).values()
    assert list(groups) == labels


def test_runs_that_differ_in_nothing_are_told_apart_by_their_directories():
    (groups,) = comparison.arrange([run("a", env="ant"), run("b", env="ant"), run("a1", env="ant", seed=1)]).values()
    assert {label: len(runs) for label, runs in groups.items()} == {"rlx2": 2, "b": 1}


def test_a_band_is_an_interval_over_seeds_at_common_steps_or_the_spread_over_episodes():
    seeds = [run(level=level, steps=(400, 800, 1200)[: 2 + (level == 1)]).rows for level in (1.0, 2.0, 6.0)]
    steps, middle, low, high = comparison._curve(seeds)
    np.testing.assert_array_equal(steps, [400, 800])
    np.testing.assert_allclose(middle, 3)
    assert (low >= 1).all() and (low < 3).all() and (high > 3).all() and (high <= 6).all()
    _, middle, low, high = comparison._curve([seeds[0]])
    np.testing.assert_allclose([middle, low, high], [[1] * 3, [0.5] * 3, [1.5] * 3])


def words(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_legend_says_what_bands_are_and_how_many_seeds_there_are():
    one = comparison.arrange([run(env="ant")])
    assert words(comparison.draw(one)) == ["rlx2 (1 seed)", "band: ± 1 std over the episodes of an evaluation"]
    three = comparison.arrange([run(env="ant", seed=seed) for seed in range(3)])
    assert words(comparison.draw(three)) == ["rlx2 (3 seeds)", "band: 95 % interval of the mean over seeds"]
    both = {"x": {"rlx2": [run().rows] * 2, "dense": [run().rows]}}
    assert [line.partition(",")[0] for line in words(comparison.draw(both))[2:]] == [
        "band: of several seeds",
        "band: of one seed",
    ]


def test_nothing_of_a_picture_lies_outside_of_it():
    runs = [
        run(env=env, method=method, seed=s) for env in ("ant", "hopper") for method in ("dense", "rlx2") for s in (0, 1)
    ]
    for figure in (comparison.draw(comparison.arrange(runs), "A title"), comparison.draw(comparison.arrange(runs[:3]))):
        curves.render(figure, ".png")
        width, height = figure.canvas.get_width_height()
        boxes = [figure.legends[0].get_window_extent(), *(axis.get_tightbbox() for axis in figure.axes)]
        for box in boxes:
            assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1


def test_every_panel_of_a_run_has_a_legend_and_discounted_returns_are_called_so():
    names = ("links_grown", "replay_size", "policy_distance", "q_mean", "actor_overlap", "critic_overlap")
    names = (*names, "actor_dormant", "critic_dormant", "return_discounted", "value_bias", "return_mean", "return_std")
    figure = curves.draw_run([{"env_steps": k, **dict.fromkeys(names, 1.0)} for k in (1, 2)], "$a$ run")
    drawn = {axis.get_title(): axis for axis in figure.axes if axis.get_title()}
    assert all(axis.get_legend() is not None for axis in drawn.values())
    texts = lambda axis: [text.get_text() for text in axis.get_legend().get_texts()]
    assert texts(drawn["value at the start of episodes"]) == ["Q", "discounted return"]
    assert "$a$ run" in drawn
