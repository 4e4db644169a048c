"""Policies as files: what is read is what was written, or one sentence."""

import jax
import numpy as np
import pytest

from rlx2_jax import policies
from rlx2_jax.errors import CheckpointError


@pytest.fixture
def saved(tmp_path):
    """A policy's file, and what it holds."""
    rng = np.random.default_rng(0)
    params = {
        f"Dense_{i}": {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.zeros(shape[1], np.float32)}
        for i, shape in enumerate([(3, 8), (8, 2)])
    }
    policies.save(tmp_path / "policy.npz", params, {"agent": "td3"})
    return tmp_path / "policy.npz", params


def test_a_policy_is_read_as_it_was_written(saved):
    path, params = saved
    loaded = policies.load(path)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    assert loaded.about == {"agent": "td3"}


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
