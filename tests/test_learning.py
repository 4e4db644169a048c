"""Does it learn? The quick tasks on real Brax and MuJoCo, several seeds, finite throughout."""

import json

import numpy as np
import pytest

from rlx2_jax.io import files
from tests.conftest import UNPOLISHED, cached, launch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "compute", "seed"),
    [
        ("inverted_pendulum", "packed", 0),
        ("InvertedPendulum-v4", "packed", 1),
        ("InvertedPendulum-v4", "packed", 2),
        ("InvertedPendulum-v4", "masked", 0),
    ],
)
@pytest.mark.parametrize("agent", ["td3", "sac"])
def test_rlx2_at_90_percent_reaches_950_on_inverted_pendulums(agent, env, compute, seed, tmp_path):
    # Brax has the sizes that a person gets; half of them learn as well, in a quarter of the time.
    sizes = ("--eval_every=2000",) if env == "inverted_pendulum" else ("--hidden=128,128", "--batch_size=128")
    run = (f"--env={env}", f"--agent={agent}", f"--compute={compute}", f"--seed={seed}", "--total_steps=40000")
    done = launch("train.py", *run, *sizes, f"--workdir={tmp_path}", cached(), **{UNPOLISHED: "0"})
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = files.read_json_lines(tmp_path / "metrics.jsonl")
    final = rows[-1]
    # Reached: the best evaluation, a mean of ten episodes. Where a run ends is left to chance in runs this short.
    assert summary["best"] >= 950
    assert len(rows) >= 10
    assert summary["nonfinite"] == 0
    # Files hold null where a value is not finite.
    assert all(row[k] is not None for row in rows for k in ("return_mean", "critic_loss", "actor_loss", "q_mean"))
    for name in ("actor_sparsity", "critic_sparsity"):
        assert final[name] == pytest.approx(0.9, abs=1e-3)
    # All three mechanisms were at work.
    assert all(row["links_grown"] > 0 for row in rows[:-2])
    assert final["n_step"] == 3
    assert np.ptp([row["policy_distance"] for row in rows]) > 0
