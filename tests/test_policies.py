"""Policies as files: what is read is what was written, or one sentence."""

import io
import json
import os
import tracemalloc
import types
import zipfile
from unittest import mock

import jax
import numpy as np
import pytest
from scipy import stats

from rlx2_jax import networks, policies
from rlx2_jax.config import registry, resolve
from rlx2_jax.envs.labels import LONGEST, Labels
from rlx2_jax.errors import CheckpointError, ConfigError
from rlx2_jax.io import archives
from rlx2_jax.networks import structure
from rlx2_jax.runtime import memory
from tests.conftest import small

ABOUT = policies.describe(resolve(small(hidden=(8,))), 1200, 3.5)


@pytest.fixture
def saved(tmp_path):
    """A policy's file, and what it holds."""
    rng = np.random.default_rng(0)
    params = {
        f"Dense_{i}": {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.zeros(shape[1], np.float32)}
        for i, shape in enumerate([(3, 8), (8, 2)])
    }
    policies.save(tmp_path / "policy.npz", params, ABOUT)
    return tmp_path / "policy.npz", params


def test_a_policy_is_read_as_it_was_written(saved):
    path, params = saved
    loaded = policies.load(path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.about == json.loads(json.dumps(ABOUT))
    jax.tree.map(np.testing.assert_array_equal, policies.load(path.parent).params, params)


def test_a_policy_is_shown_in_one_line_without_its_weights(saved):
    shown = repr(policies.load(saved[0]))
    assert shown == f"<Policy: td3 on {ABOUT['env']}, 1,200 steps, 3 observations to 2 actions>"


def test_a_damaged_policy_is_never_read_as_another(saved):
    path, params = saved
    whole = path.read_bytes()
    refused = 0
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 64]) + whole[position + 1 :])
        try:
            loaded = policies.load(path)
        except CheckpointError:
            refused += 1
        else:
            # Names and times in an archive are not all under its checksums.
            for name, layer in loaded.params.items():
                for leaf, values in layer.items():
                    np.testing.assert_array_equal(values, params[name][leaf])
    assert refused > len(whole) / 2


def announcing(shape, dtype="<f4", data=b""):
    """An array's file whose header says more than there is."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue() + data


def rewritten(path, **changes):
    """Replace members of an archive: by bytes, or by nothing if None."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members |= {f"{name}.npy": data for name, data in changes.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)


def array(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def described(**changes):
    return array(np.asarray(json.dumps({k: v for k, v in (ABOUT | changes).items() if v != "left out"})))


FAULTY = {
    "nan": {"Dense_0/bias": array(np.full(8, np.nan, np.float32))},
    "infinity": {"Dense_1/kernel": array(np.full((8, 2), np.inf, np.float32))},
    "type": {"Dense_0/kernel": array(np.ones((3, 8), np.int8))},
    "short bias": {"Dense_0/bias": array(np.zeros(7, np.float32))},
    "missing layer": {"Dense_1/kernel": None, "Dense_1/bias": None},
    "missing bias": {"Dense_1/bias": None},
    "extra member": {"Dense_2/kernel": array(np.ones((2, 2), np.float32))},
    "announced": {"Dense_0/bias": announcing((2**40,))},
    "announced inputs": {"Dense_0/kernel": announcing((2**40, 8))},
    "announced width": {"Dense_1/kernel": announcing((8, 2**15))},
    "bomb": {"Dense_0/bias": announcing((2**26,), data=bytes(4 * 2**26))},
    "bomb of inputs": {"Dense_0/kernel": announcing((2**23, 8), data=bytes(4 * 2**26))},
    "bomb beside": {"Dense_9/bias": announcing((2**26,), data=bytes(4 * 2**26))},
    "bomb of words": {"about": announcing((), f"<U{2**26}", bytes(4 * 2**26))},
    "pickle": {"Dense_0/bias": announcing((8,), "|O", bytes(64))},
    "no description": {"about": None},
    "description of numbers": {"about": array(np.zeros(3))},
    "description of a list": {"about": array(np.asarray("[1, 2]"))},
    "description of no JSON": {"about": array(np.asarray("{"))},
    "description nested": {"about": array(np.asarray("[" * 100_000))},
    **{f"without {name}": {"about": described(**{name: "left out"})} for name in policies.KINDS},
    **{f"{name} of another kind": {"about": described(**{name: [1]})} for name in policies.KINDS},
    "too few names": {"about": described(observation_names=["a", "b"])},
    "a name of two lines": {"about": described(action_names=["a\nb", "c"])},
    "a name without end": {"about": described(action_names=["a" * 1000, "c"])},
    "names that are numbers": {"about": described(observation_names=[1, 2, 3])},
    "names in one word": {"about": described(observation_names="abc")},
    "limits upside down": {"about": described(action_limits=[[1, -1], [-1, 1]])},
    "limits of one number": {"about": described(action_limits=[[1], [-1, 1]])},
    "limits of nothing": {"about": described(action_limits=[[-1, float("nan")], [-1, 1]])},
    "limits without end": {"about": described(action_limits=[[-1, 10**400], [-1, 1]])},
    "a commit of another kind": {"about": described(commit=[1])},
    "other agent": {"about": described(agent="sac")},
    "other width": {"about": described(config=small(hidden=(9,)).to_dict())},
    "no widths": {"about": described(config=ABOUT["config"] | {"hidden": "8"})},
    "huge widths": {"about": described(config=ABOUT["config"] | {"hidden": [2**40]})},
    "unknown setting": {"about": described(config={"wheels": 4})},
}


@pytest.mark.parametrize("changes", FAULTY.values(), ids=FAULTY)
def test_a_policy_that_is_not_what_it_says_is_refused_in_one_sentence_and_little_memory(saved, changes):
    path, _ = saved
    rewritten(path, **changes)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"^the policy .*\.$") as refused:
            policies.load(path)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)


def test_what_is_no_file_is_no_policy(tmp_path):
    with pytest.raises(CheckpointError, match="no policy at"):
        policies.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.npz")
    (tmp_path / "policy.npz").mkdir()
    for name, kind in (("pipe.npz", "a device or pipe"), ("", "a folder")):
        with pytest.raises(CheckpointError, match=f"is {kind}, not a file"):
            policies.load(tmp_path / name)


def test_a_policy_tells_what_size_it_expects(saved):
    policy = policies.load(saved[0])
    assert policy.act(np.zeros((5, 3))).shape == (5, 2)
    for observation in (np.zeros(4), np.zeros((3, 1)), 0.0):
        for act in (policy.act, jax.jit(policy.act)):
            with pytest.raises(ConfigError, match=r"takes observations of shape \[\.\.\., 3\], not "):
                act(observation)


def policy_of(agent, seed=0):
    """A policy of 3 observations and 2 actions, and the agent that made it."""
    config = resolve(small(agent=agent, hidden=(8,)))
    made = registry.find(agent)(config, 3, 2)
    rng = np.random.default_rng(seed)
    shapes = {"Dense_0": (3, 8), "Dense_1": (8, made.actor_outputs(2))}
    params = {
        name: {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.zeros(shape[1], np.float32)}
        for name, shape in shapes.items()
    }
    return policies.Policy(params, policies.describe(config, 0, None, (3, 2))), made


@pytest.mark.parametrize("agent", ["sac", "droq"])
def test_a_policys_random_action_is_the_one_that_training_explores_with(agent):
    policy, made = policy_of(agent)
    net = structure.nets(made.config, 2)["actor"]
    state = types.SimpleNamespace(actor=types.SimpleNamespace(params=policy.params, apply=net.apply))
    observation, key = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32), jax.random.PRNGKey(5)
    explored, mean = made.explore(state, observation, key, None)
    np.testing.assert_array_equal(policy.act(observation, key), explored)
    np.testing.assert_array_equal(policy.act(observation), mean)


def test_random_actions_are_of_the_squashed_gaussian_and_stay_within_the_bounds():
    """By each entry's Kolmogorov distance before the squash: below 1.95 / sqrt(n) in 999 of 1000 cases."""
    policy, _ = policy_of("sac")
    observation, count = np.asarray([0.3, -0.2, 0.1], np.float32), 20_000
    keys = jax.random.split(jax.random.PRNGKey(0), count)
    actions = np.asarray(jax.jit(jax.vmap(lambda key: policy.act(observation, key)))(keys))
    assert np.abs(actions).max() <= 1
    hidden = np.maximum(observation @ policy.params["Dense_0"]["kernel"], 0)
    mean, log_std = networks.gaussian_head(hidden @ policy.params["Dense_1"]["kernel"])
    for entry in range(2):
        drawn = np.arctanh(actions[:, entry].astype(np.float64).clip(-1 + 1e-7, 1 - 1e-7))
        expected = stats.norm(float(mean[entry]), float(np.exp(log_std[entry])))
        assert stats.kstest(drawn, expected.cdf).statistic < 1.95 / np.sqrt(count)
    # One key and many observations: the noise of each is its own.
    assert len(np.unique(policy.act(np.zeros((50, 3)), keys[0])[:, 0])) == 50


def test_a_policy_without_a_distribution_says_so_where_it_is_asked_for_a_random_action():
    policy, _ = policy_of("td3")
    for act in (policy.act, jax.jit(policy.act)):
        with pytest.raises(ConfigError, match=r"^this agent's actor has no distribution; call act without a key"):
            act(np.zeros(3), jax.random.PRNGKey(0))


def test_names_and_limits_are_read_as_they_were_written_and_numbered_where_there_are_none(saved, tmp_path):
    path, params = saved
    assert policies.load(path).labels == Labels(
        ("observation_0", "observation_1", "observation_2"), ("action_0", "action_1"), ((-1.0, 1.0),) * 2
    )
    named = Labels(("height", "Winkel é", "speed"), ("left", "right"), ((-3.0, 3.0), (0.0, 0.5)))
    policies.save(tmp_path / "named.npz", params, ABOUT | named._asdict() | {"sizes": [3, 2]})
    assert policies.load(tmp_path / "named.npz").labels == named


def test_a_policy_may_have_as_many_inputs_with_as_long_names_as_there_may_be(tmp_path):
    zeros = lambda *shape: np.zeros(shape, np.float32)
    params = {
        "Dense_0": {"kernel": zeros(archives.WIDEST, 8), "bias": zeros(8)},
        "Dense_1": {"kernel": zeros(8, 2), "bias": zeros(2)},
    }
    names = [f"{i:0{LONGEST}}" for i in range(archives.WIDEST)]
    policies.save(tmp_path / "wide.npz", params, ABOUT | {"sizes": [archives.WIDEST, 2], "observation_names": names})
    assert policies.load(tmp_path / "wide.npz").labels.observation_names[-1] == names[-1]


def test_a_policy_is_read_whatever_a_device_says(saved, monkeypatch):
    """It is an array of the host's; and the first device may be another host's, which says nothing."""
    devices = [mock.Mock(platform="gpu", memory_stats=lambda: {"bytes_limit": 1, "bytes_in_use": 0})]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=RuntimeError("of another host")))
    assert policies.load(saved[0]).about["env_steps"] == 1200
    with pytest.raises(ConfigError, match=r"need 2 B but .* has 1 B left"):
        memory.check_fits(2, "two bytes", "use one")
