"""The command lines as a person types them: real processes, exit codes, and what they print."""

import json

import jax
import jax.numpy as jnp
import pytest

from rlx2_jax import compilation, envs, evaluation, policies, presets
from rlx2_jax.config import Config
from tests.conftest import cached, launch, launch_here

TINY_RUN = (
    "--env=probe/action",
    "--hidden=16,16",
    "--batch_size=16",
    "--num_envs=4",
    "--total_steps=800",
    "--episode_length=10",
)

BAD = {
    "--env=pong": "unknown env 'pong'; valid: ant, ",
    "--agent=ppo": "unknown agent 'ppo'; valid: td3, sac",
    "--method=magic": "unknown method 'magic'; valid: dense, ",
    "--backend=bullet": "unknown backend 'bullet'; valid: generalized, ",
    "--hidden=256x256": "hidden=256x256: write whole numbers, such as 256,256.",
    "--resume --overwrite": "a run is continued or replaced; leave one out.",
    "--preset=td3/swimmer": "unknown preset 'td3/swimmer'; valid: rlx2, ",
    "--n_step=0": "n_step=0: a TD target spans at least 1 step.",
    "--actor_sparsity=1.5": "actor_sparsity=1.5: use a sparsity in [0, 1).",
    "--batch_size=100000": "use more than 100000 steps.",
    "--data_parallel=3": "batch_size=256 is not divided by data_parallel=3 devices; use a batch_size of 258.",
    "--data_parallel=2": "data_parallel=2: this machine shows 1 cpu devices; use at most as many",
    "--buffer_max=100": "a batch of 256 does not fit a buffer of 100",
    "--sparsity=0.9": "Unknown command line flag 'sparsity'",
    "--total_steps=many": "flag --total_steps=many",
    "--workdir=/proc/nowhere": "workdir /proc/nowhere cannot be written",
    "--resume": "holds no run to resume",
}


def assert_refused(done, sentence):
    """One sentence on standard error, and exit code 2."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.endswith(".\n")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


@pytest.mark.parametrize("flag", BAD)
def test_bad_input_is_one_sentence_exit_code_2_and_nothing_written(flag, tmp_path):
    assert_refused(launch_here("train.py", *flag.split(), cwd=tmp_path), BAD[flag])
    assert list(tmp_path.iterdir()) == []


def test_products_have_the_precision_asked_for_on_an_accelerator(monkeypatch):
    x = jnp.ones((2, 2))
    product = lambda: jax.jit(jnp.dot).lower(x, x).as_text()
    before, set_before = product(), jax.config.values["jax_default_matmul_precision"]
    compilation.use_precision("float32")
    assert product() == before  # A CPU has no other.
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    try:
        for name, told in (("float32", "HIGHEST"), ("tensorfloat32", "HIGH"), ("default", "DEFAULT")):
            compilation.use_precision(name)
            assert f"precision = [{told}, {told}]" in product()
    finally:
        jax.config.update("jax_default_matmul_precision", set_before)


def test_help_shows_every_setting_and_nothing_of_absl():
    done = launch("train.py", "--help")
    assert done.returncode == 0
    for name in ("workdir", "resume", "preset", "actor_sparsity", "n_step_delay"):
        assert f"--{name} " in done.stdout
    assert "absl" not in done.stdout


def test_a_run_then_its_evaluation_say_what_came_out_and_no_noise(tmp_path):
    done = launch("train.py", *TINY_RUN, "--workdir=run", cached(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for word in ("rlx2 td3 on probe/action", "replay", "steps/s", "updates/s", "score", "files in run"):
        assert word in done.stderr
    for noise in ("Warning", "warp", "I1", "Traceback"):
        assert noise not in done.stderr
    evaluated = launch("evaluate.py", "--workdir=run", "--json", "--episodes=8", cached(), cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout)
    assert result["n"] == 8
    assert result["low"] <= result["mean"] <= result["high"]
    policy = policies.load(tmp_path / "run" / "policy.npz")
    env = envs.make("probe/action", "generalized")
    first = jax.vmap(env.reset)(jax.random.split(jax.random.PRNGKey(result["seed"]), 8))
    expected = evaluation.episode_returns(env, policy.act, first, policy.about["episode_length"])
    assert result["mean"] == pytest.approx(float(expected.mean()), abs=1e-5)
    drawn = launch("plot.py", "--workdirs=run,run", "--output=drawn/both.png", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "drawn" / "both.png").read_bytes().startswith(b"\x89PNG")
    missing = launch("evaluate.py", "--workdir=elsewhere", cwd=tmp_path)
    assert missing.returncode == 2
    assert missing.stderr == (
        "error: elsewhere holds no run (elsewhere/config.json cannot be read); name the directory of one.\n"
    )


def test_presets_are_the_rows_of_table_2_and_compose():
    config = presets.make_config(("td3/hopper", "release"), {"seed": 7})
    assert (config.env, config.agent, config.actor_sparsity, config.critic_sparsity) == ("hopper", "td3", 0.98, 0.95)
    assert config.total_steps == 3_000_000
    assert not config.reset_moments
    assert config.seed == 7
    assert len(presets.ROWS) == 8
    assert presets.make_config() == presets.make_config(("rlx2",)) == Config()


@pytest.mark.slow
def test_a_brax_run_is_quiet_and_leaves_no_log_file(tmp_path):
    done = launch(
        "train.py", "--env=halfcheetah", "--total_steps=2000", "--eval_episodes=2", "--hidden=16,16", "--workdir=run",
        "--episode_length=50", cached(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    for noise in ("Warning", "warp", "jaxopt", "MUJOCO", "settotalmass"):
        assert noise not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
