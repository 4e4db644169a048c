"""Does it learn? Whole runs on real Brax, several seeds, finite throughout."""

import numpy as np
import pytest

from rlx2_jax.presets import make_config
from rlx2_jax.training import train


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_rlx2_at_90_percent_reaches_950_on_inverted_pendulum(agent, seed):
    config = make_config((), {"agent": agent, "seed": seed})
    result = train(config, show_progress=False)
    final = result.rows[-1]
    assert result.summary["score"] >= 950
    assert len(result.rows) >= 10
    assert result.summary["nonfinite"] == 0
    assert all(np.isfinite(row[k]) for row in result.rows[1:] for k in ("critic_loss", "actor_loss", "q_mean"))
    assert final["actor_sparsity"] == pytest.approx(0.9, abs=1e-3)
    assert final["critic_sparsity"] == pytest.approx(0.9, abs=1e-3)
    # All three mechanisms were at work.
    assert sum(row["links_grown"] for row in result.rows) > 0
    assert final["n_step"] == 3
    assert any(row["policy_distance"] > 0 for row in result.rows)
