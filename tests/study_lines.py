"""Recorded runs that never were, and what a report says of them."""

from paper import STUDIES, plan, store

from rlx2_jax import envs
from rlx2_jax.analysis import accounting


def line(arm="rlx2", seed=0, score=100.0, row="td3/hopper", study="table2", **settings):
    """A recorded run that never was."""
    found = plan.runs(STUDIES[study], [row], [seed], {"total_steps": 60_000, **settings})
    (run,) = (run for run in found if run.arm == arm)
    env = envs.make(run.config.env)
    account = accounting.account(run.config, env.observation_size, env.action_size)
    steps = range(5000, 60_001, 5000)
    return {
        "study": study,
        "row": row,
        "arm": arm,
        "kind": "learning",
        "agent": run.config.agent,
        "env": run.config.env,
        "backend": run.config.backend,
        "method": run.config.method,
        "actor_sparsity": run.config.actor_sparsity,
        "critic_sparsity": run.config.critic_sparsity,
        "seed": seed,
        "env_steps": 60_000,
        "score": score,
        "diverged": False,
        "size_ratio": account.size_ratio,
        "flops_train_ratio": account.flops_train_ratio,
        "flops_test_ratio": account.flops_test_ratio,
        "evaluations": {name: [float(s) for s in steps] for name in ("steps", *store.COLUMNS)},
        "conditions": dict(run.conditions),
        "provenance": {"command": "python x", "commit": "c0ffee", "device": "d", "versions": {}, "compute": "masked"},
        "config": run.config.to_dict(),
    }


def cells(text, arm):
    """The cells of an arm's line in a report."""
    (found,) = [row for row in text.splitlines() if row.replace("*", "").startswith(f"| {arm} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]
