"""A policy's action as an artefact of `jax.export`: StableHLO for CPU, CUDA and TPU, for any batch of 1 or more.

The file is an archive of two NumPy arrays: `function`, the bytes of the artefact, and `about`, a JSON text. Whoever has
jax and NumPy can run it:

    file = numpy.load("policy_jax.npz")
    act = jax.export.deserialize(bytearray(file["function"])).call   # observation [batch, O] to action [batch, A]

It holds any network, and all of its weights. Products are float32 on all devices.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import numpy as np

from rlx2_jax.errors import CheckpointError
from rlx2_jax.export.describe import described, description_of
from rlx2_jax.export.description import Description
from rlx2_jax.io import archives
from rlx2_jax.policies import Policy
from rlx2_jax.runtime import numerics

PLATFORMS = ("cpu", "cuda", "tpu")
"""Devices that it runs on."""

MISSING = "format=jax needs the package flatbuffers: pip install flatbuffers."
"""What is the matter, and the mend."""

LARGEST = 1 << 33
"""Bytes of an artefact, at most."""


class Artifact(NamedTuple):
    """An artefact that was read."""

    exported: jax.export.Exported
    """Its function is `exported.call`."""
    description: Description
    """What its observations and actions are, and where it comes from."""


@numerics.by_usual_rules
def save(path: Path, policy: Policy, description: Description) -> None:
    """Write the file.

    Args:
      path: of the file.
      policy: whose noise-free action it is.
      description: of it.
    """
    observations, actions = policy.sizes
    (batch,) = jax.export.symbolic_shape("batch")
    shape = jax.ShapeDtypeStruct((batch, observations), np.float32)
    with jax.default_matmul_precision("float32"):
        data = jax.export.export(jax.jit(policy.act), platforms=PLATFORMS)(shape).serialize()
    about = {**described(description), "bytes": len(data), "sizes": [observations, actions]}
    archives.save(path, about, {"function": np.frombuffer(data, np.uint8)})


def load(path: Path) -> Artifact:
    """Read the file, and see that it is a function of observations to actions.

    Raises:
      FileNotFoundError: there is none.
      CheckpointError: it is damaged, or of a version of jax that this one cannot read.
    """
    about, arrays = archives.load(path, "artefact", _arrays, "write it again")
    try:
        exported = jax.export.deserialize(bytearray(arrays["function"]))
        found = [(aval.shape[1:], aval.dtype) for aval in (*exported.in_avals, *exported.out_avals)]
    except Exception as error:  # Whatever the reader of another format raises.
        raise _damaged(path, str(error).partition("\n")[0][:200] or type(error).__name__) from None
    if found != [((size,), np.float32) for size in about["sizes"]]:
        raise _damaged(path, "its function is of other sizes than it says")
    return Artifact(exported, description_of(about))


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"the artefact {path} cannot be used ({reason}); write it again with this version of jax.")


def _arrays(about: dict[str, Any], headers: Mapping[str, archives.Announced]) -> dict[str, tuple[tuple[int, ...], Any]]:
    archives.require(about, {"bytes": int})
    archives.sizes(about.get("sizes"), 2)
    description = description_of(about)
    if [len(description.observation_names), len(description.action_names)] != about["sizes"]:
        raise ValueError("its description is of other sizes than it says")
    if not 0 < about["bytes"] <= LARGEST:
        raise ValueError("its description has impossible shapes")
    return {"function": ((about["bytes"],), np.uint8)}
