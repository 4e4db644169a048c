"""The package as others get it: what its archives hold, installed with and without a compiler; how it is cited."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile

import jax
import pytest
import yaml

import rlx2_jax
from rlx2_jax.runtime import native
from tests.conftest import ROOT, small
from tests.copies import copy_kept_files, kept_files

USE = """
import json, sys
from pathlib import Path

import jax, optax

import rlx2_jax
from rlx2_jax import Config, export, load_policy, sparse, train
from rlx2_jax.runtime import native
from rlx2_jax.viz import rollout, viewer

config = Config(
    env=sys.argv[1], hidden=(16, 16), total_steps=1200, num_envs=4, batch_size=16, episode_length=20,
    eval_every=600, eval_episodes=2, reset_pool=8, compute="packed",
)
finished = train(config, "run").finished
policy = load_policy("run")
export.save(policy, "deploy", formats=["c", "numpy"])
if sys.argv[1] != "probe/action":
    Path("page.html").write_bytes(viewer.page(rollout.roll_out(policy, jax.random.PRNGKey(0))))
tx = sparse.rigl(optax.adam(1e-2), density=sparse.uniform(0.75), every=50, until=750)
params, _ = sparse.init(tx, {"w": jax.numpy.ones((64, 64))})
print(json.dumps({
    "finished": finished, "version": rlx2_jax.__version__, "native": native.load() is not None,
    "home": rlx2_jax.__file__, "links": int((params["w"] != 0).sum()),
}))
"""
"""What a person does with an installed package, in an empty directory."""


def changelog():
    """Versions of the change log with the text of each."""
    text = (ROOT / "CHANGELOG.md").read_text()
    found = re.split(r"^## (\S+), (\d{4}-\d\d-\d\d)$", text, flags=re.MULTILINE)[1:]
    return {version: (date, body) for version, date, body in zip(*(found[i::3] for i in range(3)), strict=True)}


def test_whoever_cites_gets_this_version_and_the_paper():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= set(cited)
    assert cited["version"] == rlx2_jax.__version__
    assert str(cited["date-released"]) == changelog()[rlx2_jax.__version__][0]
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert cited["license"] == told["license"] and cited["abstract"].startswith("Deep reinforcement learning")
    assert cited["authors"] == told["authors"]
    (paper,) = cited["references"]
    readme = (ROOT / "README.md").read_text()
    names = " and ".join(f"{author['family-names']}, {author['given-names']}" for author in paper["authors"])
    assert f"author    = {{{names}}}" in readme and f"year      = {{{paper['year']}}}" in readme
    assert paper["title"] in readme.replace("{", "").replace("}", "")
    assert paper["conference"]["name"] in readme


def test_the_newest_entry_of_the_change_log_is_this_version():
    versions = changelog()
    assert next(iter(versions)) == rlx2_jax.__version__
    assert all(body.strip() for _, body in versions.values())
    assert [date for date, _ in versions.values()] == sorted((date for date, _ in versions.values()), reverse=True)


def test_first_steps_names_every_extra():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    text = (ROOT / "docs" / "first-steps.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == list(extras)


def pip(*arguments, cwd=None, **variables):
    """Nothing is fetched: what it needs is in this environment."""
    command = [sys.executable, "-m", "pip", *arguments, "-q", "--no-deps", "--no-build-isolation", "--no-cache-dir"]
    subprocess.run([*map(str, command)], cwd=cwd, check=True, env=environment() | variables)


def environment():
    """That of this process with the tests' compiled programs, but for where packages are found besides."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC", "CXX")}
    return kept | {
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The archive of the source, made of the files that the repository keeps, as they are now."""
    place = copy_kept_files(tmp_path_factory.mktemp("source"))
    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "dist"], cwd=place, check=True, capture_output=True, env=environment())
    (made,) = (place / "dist").iterdir()
    return made


def new_environment(place):
    """A Python of its own, that finds what this one has installed, but this package."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    told = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = subprocess.run(told, check=True, capture_output=True, text=True).stdout.strip()
    with open(f"{site}/others.pth", "w") as file:
        file.write(f"{sysconfig.get_path('purelib')}\n")
    return python


def used(python, env, place):
    """What the installed package does, and what it says on standard error."""
    place.mkdir()
    done = subprocess.run(
        [python, "-c", USE, env], cwd=place, capture_output=True, text=True, env=environment(), timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["finished"] and found["version"] == rlx2_jax.__version__ and found["links"] == 1024
    assert found["home"].startswith(str(python.parents[1])), "the installed one, not this one"
    assert (place / "deploy" / "policy.c").is_file() and (place / "deploy" / "policy_numpy.npz").is_file()
    return found, done.stderr


@pytest.mark.slow
def test_the_source_archive_holds_what_it_takes_to_build_and_no_more(source):
    with tarfile.open(source) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert source.name == f"rlx2_jax-{rlx2_jax.__version__}.tar.gz"
    package = {name for name in kept_files() if name.startswith("rlx2_jax/")}
    beside = {"LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "pyproject.toml", "setup.py", "MANIFEST.in"}
    made = {name for name in names if name.startswith("rlx2_jax.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert names - made == package | beside


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_a_wheel_made_of_the_source_archive_has_the_kernels_and_works_elsewhere(source, tmp_path):
    pip("wheel", source, "--wheel-dir", tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    (kernels,) = (name for name in names if name.endswith(".so"))
    assert kernels == f"rlx2_jax/kernels/_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert "none-any" not in wheel.name, "a wheel of this platform"
    package = {name for name in kept_files() if name.startswith("rlx2_jax/") and "/cpp/" not in name}
    assert {name for name in names if name.startswith("rlx2_jax/")} - {kernels} == package

    python = new_environment(tmp_path / "venv")
    pip("--python", python, "install", wheel)
    found, said = used(python, "InvertedPendulum-v4", tmp_path / "use")
    assert found["native"] and "compiler" not in said
    assert b"<canvas" in (tmp_path / "use" / "page.html").read_bytes()


@pytest.mark.slow
def test_without_a_compiler_the_source_archive_installs_and_trains_portably(source, tmp_path):
    python = new_environment(tmp_path / "venv")
    (tmp_path / "bin").mkdir()
    pip("--python", python, "install", source, PATH=str(tmp_path / "bin"))
    found, said = used(python, "probe/action", tmp_path / "use")
    assert not found["native"] and not [*(tmp_path / "venv").rglob("_native*.so")]
    assert said.count(native.BUILD) == 1


@pytest.mark.slow
def test_all_of_it_is_imported_and_trains_without_what_is_of_unix_alone(tmp_path):
    command = [sys.executable, "-m", "tests.unlike_unix", tmp_path / "run", json.dumps(vars(small()))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    modules = sum(path.name != "__init__.py" for path in (ROOT / "rlx2_jax").rglob("*.py"))
    assert int(done.stdout.split()[0]) >= modules
    assert done.stdout.endswith("stopped at 400, then trained to 1200\n")
