"""The command lines as a person types them: real processes, exit codes, and what they print."""

import ast
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx2_jax import envs, policies
from rlx2_jax.config import Config, presets, resolve
from rlx2_jax.config.fields import Group
from rlx2_jax.policies import describe
from rlx2_jax.runtime import compilation
from rlx2_jax.training import evaluation, workdirs
from tests.conftest import ROOT, cached, launch, launch_here, small

TINY_RUN = (
    "--env=probe/action",
    "--hidden=16,16",
    "--batch_size=16",
    "--num_envs=4",
    "--total_steps=800",
    "--episode_length=10",
)

BAD = {
    "--env=pong": "unknown env 'pong'; there are Brax's ant, ",
    "--agent=ppo": "unknown agent 'ppo'; valid: droq, sac, td3",
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
    "--buffer_max=100": "a batch of 256 or a window of 100 does not fit a buffer of 100; use buffer_max of",
    "--sparsity=0.9": "Unknown command line flag 'sparsity'",
    "--total_steps=1e5": "flag --total_steps=1e5: write a whole number in digits, such as 100000 (--help",
    "--tau=small": "flag --tau=small: write a number, such as 0.9 (--help",
    "--total-steps=800": "Unknown command line flag 'total-steps'. Did you mean: total_steps? (--help",
    "--workdir=/proc/nowhere": "workdir /proc/nowhere cannot be written",
    "--workdir=": "flag --workdir=: name a path, or leave the flag out",
    "--noresume=1": "noresume=1 does not take an argument",
    "--resume true": "unexpected argument 'true'; write every setting as --flag=value",
    "pong": "unexpected argument 'pong'",
    "--update_ratio=1e300": "update_ratio=1e+300 makes",
    "--update_ratio=0": "update_ratio=0.0: use a positive number.",
    "--schedule_scale=1e308": "schedule_scale=1e+308: use a positive factor of at most",
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


LAUNCHERS = sorted(path.name for path in (ROOT / "experiments").glob("*.py"))


def flags_of(launcher, kind):
    """Names of a launcher's flags that are defined with `DEFINE_<kind>`, and those of `Config` of that type."""
    text = (ROOT / "experiments" / launcher).read_text()
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    own = [c.args[0].value for c in calls if getattr(c.func, "attr", "") == f"DEFINE_{kind}"]
    python = {"float": "float", "integer": "int"}[kind]
    fields = [f.name for f in dataclasses.fields(Config) if str(f.type).split(" ")[0] == python]
    return own + (fields if "define_config_flags" in text else [])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_number_that_is_not_finite_or_beyond_all_counters_is_refused_by_its_flag(launcher, tmp_path):
    cases = [(name, value) for name in flags_of(launcher, "float") for value in ("nan", "-inf")]
    cases += [(name, value) for name in flags_of(launcher, "integer") for value in (2**31,)]
    cases += [(name, value) for name in flags_of(launcher, "integer")[:1] for value in (2**63, 10**19)]
    if launcher == "sweep.py":
        cases += [("sweep.update_ratio", "1,nan"), ("sweep.gamma", "inf"), ("seeds", 10**9), ("seeds", "9" * 5000)]
    for name, value in cases:
        assert_refused(launch_here(launcher, f"--{name}={value}", cwd=tmp_path), f"{name}={value}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_is_no_flag_is_refused_by_every_launcher(launcher, tmp_path):
    (tmp_path / "flags").write_bytes(b"\x80\x00\xff")
    for arguments in (["word"], ["--colour=red"], [f"--flagfile={tmp_path}/flags"], ["--flagfile=nowhere"]):
        assert_refused(launch_here(launcher, *arguments, cwd=tmp_path), "--help lists the flags")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_platform_that_is_not_here_is_refused_by_every_launcher_that_computes(launcher, tmp_path, monkeypatch):
    def none(*arguments):
        raise RuntimeError("Unable to initialize backend 'cuda': not here.\nSee above.")

    monkeypatch.setattr(jax, "default_backend", none)
    monkeypatch.setattr(jax, "devices", none)
    monkeypatch.setattr(jax, "device_count", none)
    run = [f"--workdir={tmp_path / 'run'}"]
    arguments = {
        "reproduce.py": ["--study=table2"],
        "evaluate.py": run,
        "rollout.py": run,
        "export.py": run,
        "report.py": run,
    }
    if launcher == "plot.py":
        return
    done = launch_here(launcher, *arguments.get(launcher, []), cwd=tmp_path)
    assert_refused(done, "Unable to initialize backend 'cuda': not here")
    assert list(tmp_path.iterdir()) == []


def test_a_platform_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert_refused(launch("train.py", cwd=tmp_path), "JAX_PLATFORMS=cuda: JAX finds no such device here")
    assert list(tmp_path.iterdir()) == []


def test_help_leaves_a_percent_sign_alone_and_every_way_to_ask_for_it_gives_it():
    texts = {launch_here("train.py", way).stdout for way in ("--help", "-h", "-?", "--helpshort")}
    texts = {*texts, *(launch_here("train.py", *ways).stdout for ways in (["-help"], ["--seed=x", "--help"]))}
    assert len(texts) == 1
    for text in (*texts, launch_here("train.py", "--helpfull").stdout):
        assert "at 90 % sparsity on inverted_pendulum" in " ".join(text.split())


def test_help_is_a_screen_with_the_flags_that_people_need_in_groups():
    text = launch_here("train.py", "--help").stdout
    lines = text.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert all(line.count("[") == line.count("]") for line in lines if not line.endswith("...")), "a default is whole"
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["this command:", *(f"{group}:" for group in Group)]
    shown = re.findall(r"^  --(\w+) ", text, re.MULTILINE)
    assert len(shown) == len(set(shown))
    readme = (ROOT / "README.md").read_text().replace("\\\n", " ")
    (used,) = [re.findall(r"--(\w+)", " ".join(re.findall(r"train\.py((?:\s+--[^\s`]+)*)", readme)))]
    assert used and {*used} - {"help", "helpfull"} <= {*shown}
    assert lines[-1].startswith(f"--helpfull has all {len(dataclasses.fields(Config))} settings")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_full_help_has_every_flag_and_the_short_one_no_other(launcher):
    full, short = (launch_here(launcher, way).stdout for way in ("--helpfull", "--help"))
    named = [{*re.findall(r"^  --([\w.<>]+) ", text, re.MULTILINE)} for text in (full, short)]
    assert named[1] <= named[0]
    if "actor_sparsity" in named[0] or launcher in ("train.py", "sweep.py", "reproduce.py"):
        assert {field.name for field in dataclasses.fields(Config)} <= named[0]
        assert max(map(len, short.splitlines())) <= 100
        assert len(short.splitlines()) <= 60
    else:
        assert named[1] == named[0]


def test_a_flag_that_bears_the_name_of_a_setting_is_helped_with_in_its_launchers_own_words():
    for launcher, words in {
        "plot.py": "--network                  <actor|critic>: whose masks",
        "evaluate.py": "--seed                     seed of the episodes; the run's own are other ones",
    }.items():
        text = launch_here(launcher, "--help").stdout
        assert words in text
        assert "settings" not in text
        assert not re.findall(r"^\w[\w ]*:$", text, re.MULTILINE)


def test_seeds_that_are_no_decimal_digits_are_refused(tmp_path):
    assert_refused(launch_here("sweep.py", "--seeds=²", cwd=tmp_path), "seeds=²: write 4 for the seeds 0 to 3")


@pytest.fixture
def played(tmp_path):
    """A directory with a policy that has learned nothing."""
    config = resolve(small(hidden=(1,)))
    layer = {"kernel": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}
    params = {"Dense_0": layer, "Dense_1": layer}
    workdirs.prepare(tmp_path / "run", config, resume=False, overwrite=False)
    policies.save(tmp_path / "run" / "policy.npz", params, describe(config, 0, None))
    return tmp_path


EVALUATION = {
    "--episodes=0": "episodes=0: use at least 1.",
    "--episodes=2000000000": "2,000,000,000 episodes at once need",
    "--policy=worst": "unknown policy 'worst'; valid: last, best.",
    "--workdir=": "flag --workdir=: name a path",
    "--seed=4294967296": "flag --seed=4294967296: use at most 2147483647",
}


@pytest.mark.parametrize("flag", EVALUATION)
def test_an_evaluation_that_cannot_be_is_refused(flag, played):
    assert_refused(launch_here("evaluate.py", "--workdir=run", flag, cwd=played), EVALUATION[flag])


def test_output_that_cannot_be_written_is_one_sentence(played):
    command = [sys.executable, str(ROOT / "experiments" / "evaluate.py"), "--workdir=run", "--episodes=1", cached()]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command,
            cwd=played,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    assert_refused(done, "what is printed cannot be written (No space left on device); send it elsewhere.")


@pytest.mark.parametrize("arguments", ["train.py --help", "evaluate.py --workdir=run --episodes=1"])
def test_a_reader_that_goes_away_ends_nothing(arguments, played):
    launcher, *rest = arguments.split()
    command = shlex.join([sys.executable, str(ROOT / "experiments" / launcher), *rest, cached()])
    done = subprocess.run(
        ["bash", "-c", f"{command} | true; exit ${{PIPESTATUS[0]}}"],
        cwd=played, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_a_home_directory_is_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said = launch_here("evaluate.py", "--workdir=~/run", cwd=tmp_path).stderr
    assert f"{tmp_path}/home/run holds no run" in said
    assert f"{tmp_path}/home/a holds no run" in launch_here("plot.py", "--workdirs=~/a", "--output=x.png").stderr
    assert f"no masks at {tmp_path}/home/t" in launch_here("train.py", "--ticket=~/t", cwd=tmp_path).stderr
    assert list(tmp_path.iterdir()) == []


def test_who_has_no_home_has_no_cache_and_is_told_so_once(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compilation, "use_cache", compilation.use_cache)
    assert compilation.user_cache() is None
    # A refusal that comes after JAX was set up.
    done = launch_here("train.py", "--workdir=/proc/nowhere", cwd=tmp_path)
    told, refused = done.stderr.splitlines()
    assert told == "no home directory: compiled programs are not kept; name a --compilation_cache."
    assert refused.startswith("error: ")
    assert_refused(launch_here("train.py", "--workdir=~/x", cwd=tmp_path), "there is no home directory")
    assert list(tmp_path.iterdir()) == []


PICTURES = {
    "--output=drawn": "output=drawn: name a file that ends with .png, .pdf or .svg.",
    "--output=a.gif": "output=a.gif: name a file that ends with",
    "--output=folder.png": "folder.png is a directory; name a file with --output.",
    "--output=/proc/nowhere/a.png": "/proc/nowhere cannot be written",
    "--output=": "flag --output=: name a path",
    "--title=none": "nowhere to draw",
}


@pytest.mark.parametrize("flag", PICTURES)
def test_a_picture_that_cannot_be_written_is_refused_before_it_is_drawn(flag, tmp_path):
    (tmp_path / "folder.png").mkdir()
    assert_refused(launch_here("plot.py", "--workdirs=nowhere", flag, cwd=tmp_path), PICTURES[flag])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


@pytest.mark.parametrize(("ending", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_a_picture_is_what_its_name_ends_with_and_its_title_is_plain_text(ending, begins, tmp_path):
    workdirs.prepare(tmp_path / "run", resolve(small()), resume=False, overwrite=False)
    rows = [{"env_steps": k, "return_mean": 1.0, "return_std": 0.1} for k in (400, 800)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, title in (("a", r"$\foo$ \udcff 日本"), ("b", "ordinary")):
        output = f"new/{name}.{ending}"
        done = launch_here("plot.py", "--workdirs=run", f"--output={output}", f"--title={title}", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"wrote {output}\n", "")
        assert (tmp_path / output).read_bytes().startswith(begins)


def test_runs_of_a_sweep_that_were_not_evaluated_are_left_out_of_its_picture(tmp_path):
    for name, rows in (("a", [{"env_steps": 400, "return_mean": 1.0, "return_std": 0.1}]), ("b", [])):
        run = tmp_path / "sweep" / "runs" / name
        workdirs.prepare(run, resolve(small()), resume=False, overwrite=False)
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sweep" / workdirs.PLAN).write_text("{}")
    done = launch_here("plot.py", "--workdirs=sweep", "--output=a.png", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote a.png\n", "left out, not evaluated yet: b\n")
    (tmp_path / "sweep" / "runs" / "a" / "metrics.jsonl").write_text("")
    assert_refused(launch_here("plot.py", "--workdirs=sweep", "--output=b.png", cwd=tmp_path), "no evaluation yet")


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
    done = launch("train.py", "--helpfull")
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
    assert (tmp_path / "run" / "curve.png").stat().st_size > 30_000  # All panels; an empty one has 3,000 bytes.
    evaluated = launch_here("evaluate.py", "--workdir=run", "--json", "--episodes=8", cached(), cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    result = json.loads(evaluated.stdout)
    assert result["n"] == 8
    assert result["low"] <= result["mean"] <= result["high"]
    once = launch_here("evaluate.py", "--workdir=run", "--json", "--episodes=1", cached(), cwd=tmp_path)
    assert {json.loads(once.stdout)[name] for name in ("low", "high", "std")} == {None}, "one episode has no interval"
    said = launch_here("evaluate.py", "--workdir=run", "--episodes=1", cached(), cwd=tmp_path).stdout
    assert said.endswith(", 1 episode, seed 1000000\n") and "interval" not in said
    policy = policies.load(tmp_path / "run" / "policy.npz")
    env = envs.make("probe/action", "generalized")
    first = jax.vmap(env.reset)(jax.random.split(jax.random.PRNGKey(result["seed"]), 8))
    expected = evaluation.episode_returns(env, policy.act, first, policy.about["episode_length"])
    assert result["mean"] == pytest.approx(float(expected.mean()), abs=1e-5)
    drawn = launch_here("plot.py", "--workdirs=run,run", "--output=drawn/both.png", cwd=tmp_path)
    assert drawn.stdout == "wrote drawn/both.png\n"
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "drawn" / "both.png").read_bytes().startswith(b"\x89PNG")
    for script, *more in (("evaluate.py",), ("train.py", "--resume")):
        missing = launch_here(script, *more, "--workdir=elsewhere", cwd=tmp_path)
        assert missing.returncode == 2
        assert missing.stderr == (
            "error: elsewhere holds no run (elsewhere/config.json cannot be read); name the directory of one.\n"
        )
    assert not (tmp_path / "elsewhere").exists()


def test_presets_are_the_rows_of_table_2_and_compose():
    config = presets.make_config(("td3/hopper", "release"), {"seed": 7})
    assert (config.env, config.agent, config.actor_sparsity, config.critic_sparsity) == ("hopper", "td3", 0.98, 0.95)
    assert config.total_steps == 3_000_000
    assert not config.reset_moments
    assert config.seed == 7
    assert len(presets.ROWS) == 8
    assert presets.make_config() == presets.make_config(("rlx2",)) == Config()
