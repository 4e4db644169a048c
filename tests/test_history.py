"""Masks over training: what is recorded, how much of it, and that it is the same however often a run stopped."""

import dataclasses
import itertools
import json
import os
import signal

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx2_jax import policies
from rlx2_jax.config import resolve
from rlx2_jax.errors import CheckpointError
from rlx2_jax.networks import masking
from rlx2_jax.policies import history, tickets
from rlx2_jax.training import train
from tests.conftest import PAPER_AGENTS, small
from tests.test_tickets import masks_of, settings_and_sizes

SPARSE = {"actor_sparsity": 0.6, "critic_sparsity": 0.5}


def first_of(masks):
    return {name: [np.packbits(kernel) for kernel in masking.kernels(tree)] for name, tree in masks.items()}


def assert_is(recorded, snapshot, masks):
    for name in history.NETWORKS:
        for found, kernel in zip(recorded.masks(snapshot, name), masking.kernels(masks[name]), strict=True):
            np.testing.assert_array_equal(found, kernel)


def recorder(path, config, sizes):
    return history.Recorder(path, config, sizes, lambda steps: policies.describe(config, steps, None, sizes))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Directories of runs whose links moved, one by agent."""
    directories = {agent: tmp_path_factory.mktemp("runs") / agent for agent in PAPER_AGENTS}
    for agent, directory in directories.items():
        train(small(agent=agent, **SPARSE), directory, show_progress=False)
    return directories


@settings(max_examples=10)
@given(settings_and_sizes(), st.sampled_from([1, 2, 9, 62, 63, 130]), st.integers(0, 2**32 - 1))
def test_a_history_is_bounded_holds_what_was_looked_at_and_does_not_depend_on_where_a_run_stopped(
    tmp_path_factory, what, evaluations, seed
):
    rng = np.random.default_rng(seed)
    config, *sizes = what
    config = dataclasses.replace(config, total_steps=evaluations * config.eval_every)
    pool = [masks_of(config, *sizes, rng) for _ in range(3)]
    course = [pool[i] for i in rng.integers(0, 3, evaluations + 1)]
    folder = tmp_path_factory.mktemp("history")
    whole, stopped = (recorder(folder / name, config, tuple(sizes)) for name in ("whole", "stopped"))
    for each in (whole, stopped):
        assert each.begin(0, first_of(course[0])) is None
    stop, back = sorted(rng.integers(0, evaluations + 1, 2), reverse=True)
    steps = [k * config.eval_every for k in range(evaluations + 1)]
    for k in range(1, stop + 1):
        stopped.add(steps[k], course[k])
    # What was made after the checkpoint at `back` is forgotten.
    stopped = recorder(folder / "stopped", config, tuple(sizes))
    assert stopped.begin(steps[back], first_of(course[0])) is None
    for k in range(1, evaluations + 1):
        whole.add(steps[k], course[k])
        if k > back:
            stopped.add(steps[k], course[k])
    assert (folder / "whole").read_bytes() == (folder / "stopped").read_bytes()
    found = history.load(folder / "whole")
    assert len(found.steps) <= history.SNAPSHOTS
    for snapshot, step in enumerate(found.steps):
        assert_is(found, snapshot, course[step // config.eval_every])
    assert_is(found, -1, course[-1])
    if evaluations <= history.SNAPSHOTS - 2:
        for k, step in enumerate(steps):
            assert_is(found, found.before(step), course[k])
    moved = [np.any(a != b) for a, b in itertools.pairwise(found.packed)]
    assert all(moved), "the same masks are kept once"


@pytest.mark.parametrize("agent", PAPER_AGENTS)
def test_a_runs_history_begins_and_ends_as_its_masks_do_and_moves_links_between(runs, agent):
    found, ends = history.load(runs[agent]), tickets.load(runs[agent])
    assert found.steps == (0, 400, 800, 1200)
    assert_is(found, 0, ends.initial)
    assert_is(found, -1, ends.final)
    links = found.links("actor")
    assert (links == links[0]).all() and links.shape == (4, 3)
    assert found.about["config"] == json.loads(json.dumps(resolve(small(agent=agent, **SPARSE)).to_dict()))
    assert found.observation_size == len(found.labels.observation_names)


def test_a_stopped_run_leaves_the_history_of_one_that_never_stopped_and_can_be_read_before_its_end(runs, tmp_path):
    config = small(**SPARSE)
    stop = lambda rows: os.kill(os.getpid(), signal.SIGTERM) if len(rows) == 2 else None
    train(config, tmp_path, show_progress=False, on_report=stop)
    assert history.load(tmp_path).steps == (0, 400, 800)
    train(config, tmp_path, show_progress=False, resume=True)
    assert (tmp_path / history.NAME).read_bytes() == (runs["td3"] / history.NAME).read_bytes()


@pytest.mark.parametrize(
    ("method", "compute"),
    [("dense", "masked"), ("ss", "packed"), pytest.param("rlx2", "packed", marks=pytest.mark.slow)],
)
def test_masks_that_never_change_are_kept_once_and_packed_networks_have_theirs(tmp_path, method, compute):
    train(small(method=method, compute=compute), tmp_path, show_progress=False)
    found, ends = history.load(tmp_path), tickets.load(tmp_path)
    assert found.steps == ((0, 400, 800, 1200) if method == "rlx2" else (0,))
    assert_is(found, 0, ends.initial)
    assert_is(found, -1, ends.final)


@pytest.mark.parametrize("what", ["missing", "damaged", "another's"])
def test_a_resumed_run_whose_history_is_lost_says_so_and_goes_on(runs, tmp_path, what):
    config, sizes = resolve(small(**SPARSE)), (1, 1)
    ends = [tickets.load(runs["td3"])[moment] for moment in (0, 1)]
    path = tmp_path / history.NAME
    if what == "damaged":
        path.write_bytes((runs["td3"] / history.NAME).read_bytes()[:-9])
    if what == "another's":
        recorder(path, config, sizes).begin(0, first_of(ends[1]))
    ours = recorder(path, config, sizes)
    assert ours.begin(800, first_of(ends[0])) == (
        f"{path} is not as the run had written it; of the masks up to step 800 it keeps those that the run began with"
    )
    ours.add(1200, ends[1])
    assert history.load(path).steps == (0, 1200)


def test_without_a_history_the_masks_at_both_ends_are_one(runs, tmp_path):
    (tmp_path / tickets.NAME).write_bytes((runs["td3"] / tickets.NAME).read_bytes())
    found, whole = history.load(tmp_path), history.load(runs["td3"])
    assert found.steps == (0, 1200)
    np.testing.assert_array_equal(found.packed, whole.packed[[0, -1]])
    with pytest.raises(CheckpointError, match=r"^no masks at .*; name the directory of a run, or its topology.npz\.$"):
        history.load(tmp_path / "nowhere")


def saved(source, path, members=None, **changes):
    """A copy of a history with another description, or other members."""
    with np.load(source / history.NAME) as archive:
        arrays = dict(archive)
    about = json.loads(str(arrays.pop("about"))) | changes
    np.savez(path, about=json.dumps(about), **(arrays | (members or {})))


@pytest.mark.parametrize(
    "changes",
    [
        *({"steps": steps} for steps in ([], [0, 800, 400, 1200], [1, 2, 3, 4], [0, 1.5, 2, 3], "0", [0, 400])),
        {"steps": [0, *range(400, 400 * 65, 400)]},
        {"format": 2},
        {"shapes": {}},
        {"config": {"hidden": [16, 2**40]}},
        {"members": {"3": np.zeros(10**6, np.uint8)}},
        {"members": {"3": np.zeros(40, np.uint8)}},
        {"members": {"4": np.zeros(40, np.uint8)}},
        {"members": {"3": np.zeros(40, np.float32)}},
    ],
)
def test_a_history_that_is_not_that_of_its_configuration_is_refused_in_one_sentence(runs, tmp_path, changes):
    saved(runs["td3"], tmp_path / "file.npz", **changes)
    with pytest.raises(CheckpointError, match=r"^the masks .*\.$") as refused:
        history.load(tmp_path / "file.npz")
    assert "\n" not in str(refused.value)


def test_a_history_with_other_numbers_of_links_or_a_bomb_in_it_is_refused(runs, tmp_path):
    import zlib

    size = history.load(runs["td3"]).packed.shape[1]
    for data, why in ((b"\xff" * size, "links, where"), (bytes(size - 1), "has not"), (bytes(10**7), "has not|shape")):
        member = np.frombuffer(zlib.compress(data), np.uint8)
        saved(runs["td3"], tmp_path / "file.npz", {"1": member})
        with pytest.raises(CheckpointError, match=rf"damaged \(.*({why}).*make their run again\.$"):
            history.load(tmp_path / "file.npz")


def test_a_damaged_file_is_never_read_as_another_history(runs, tmp_path):
    whole, good = (runs["td3"] / history.NAME).read_bytes(), history.load(runs["td3"])
    path, refused = tmp_path / "damaged.npz", 0
    positions = range(0, len(whole), 97)
    for position in positions:
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 64]) + whole[position + 1 :])
        try:
            # Names and times in an archive are not all under its checksums.
            np.testing.assert_array_equal(history.load(path).packed, good.packed)
        except CheckpointError:
            refused += 1
    assert refused > len(positions) / 2
    for length in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"damaged .*make their run again\.$"):
            history.load(path)


def test_bits_of_a_snapshot_are_those_of_the_masks_in_turn(runs):
    found = history.load(runs["td3"])
    for snapshot in range(len(found.steps)):
        masks = [mask for name in history.NETWORKS for mask in found.masks(snapshot, name)]
        np.testing.assert_array_equal(found.packed[snapshot], np.concatenate([*map(np.packbits, masks)]))
    assert jax.tree.all([mask.dtype == bool for mask in masks])
