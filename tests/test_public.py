"""The package's own names, as a person meets them first."""

import subprocess
import sys

import numpy as np
import pytest

import rlx2_jax
from rlx2_jax import policies, sparse, sweeps, training
from rlx2_jax.config import config
from tests.conftest import ROOT, small


def test_the_public_names_are_there_and_are_what_they_say():
    assert rlx2_jax.Config is config.Config
    assert rlx2_jax.train is training.train and rlx2_jax.make_train is training.make_train
    assert rlx2_jax.sweep is sweeps.sweep
    assert rlx2_jax.load_policy is policies.load
    assert rlx2_jax.sparse is sparse
    assert set(rlx2_jax.__all__) <= set(dir(rlx2_jax))
    assert all(getattr(rlx2_jax, name).__doc__ for name in rlx2_jax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'magic'"):
        rlx2_jax.magic  # noqa: B018


def test_the_package_itself_imports_nothing():
    told = "import sys, rlx2_jax; print(sorted({'jax', 'numpy', 'flax', 'brax', 'rlx2_jax.config'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_run_from_its_three_public_names(tmp_path):
    from rlx2_jax import load_policy, train

    result = train(small(total_steps=400, eval_every=400), tmp_path, show_progress=False)
    assert result.finished
    assert load_policy(tmp_path).act(np.zeros(1, np.float32)).shape == (1,)
