"""Builds the optional native kernels; everything else stands in pyproject.toml."""

import importlib.util
from pathlib import Path

from setuptools import Extension, setup

SOURCES = (Path("rlx2_jax/kernels/cpp"), Path("rlx2_jax/envs/cpp"))


def xla_headers() -> list[str]:
    """Include directories of jaxlib, found without importing it."""
    spec = importlib.util.find_spec("jaxlib")
    return [str(Path(where) / "include") for where in (spec.submodule_search_locations if spec else ())]


setup(
    ext_modules=[
        Extension(
            "rlx2_jax.kernels._native",
            sources=[str(path) for room in SOURCES for path in sorted(room.glob("*.cc"))],
            depends=[str(path) for room in SOURCES for path in sorted(room.iterdir())],
            include_dirs=[*map(str, SOURCES), *xla_headers()],
            # No -march: the kernels choose their instruction set when they run.
            extra_compile_args=["-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi"],
            language="c++",
            # Without a compiler the package still installs, and packed compute and MuJoCo take their portable paths.
            optional=True,
        )
    ]
)
