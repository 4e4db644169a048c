"""Golden states: what small runs of every kind are made of, bit by bit, before a large change and after it.

    python -m tests.golden write FILE     # on the commit that must not change
    python -m tests.golden check FILE     # on the one that changed, on the same machine

A run is TD3's or SAC's, masked or packed, of each method, on a probe and, for RLx2, on one of Brax's tasks: 1,200 steps
in which everything happens. Kept are digests of masks, parameters, targets, moments, replay and reports, each in the
order in which data flows, not by the names that code has for them. They are bits, so they belong to a processor, a
version of JAX and its flags, which stand beside them; another machine's are refused.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from rlx2_jax.config import METHODS
from rlx2_jax.io import provenance
from rlx2_jax.training import programs
from tests.conftest import small

BRAX: dict[str, Any] = {"env": "inverted_pendulum", "backend": "spring", "eval_episodes": 2}
KINDS: list[dict[str, Any]] = [
    *({"method": method} for method in METHODS),
    {"method": "rlx2", **BRAX},
]


def digest(tree: Any) -> str:
    """The leaves of a tree: their types, shapes and bytes, in order."""
    hashed = hashlib.sha256()
    for leaf in map(np.asarray, jax.tree.leaves(tree)):
        hashed.update(repr((str(leaf.dtype), leaf.shape)).encode() + leaf.tobytes())
    return hashed.hexdigest()[:16]


def frozen(**changes: Any) -> dict[str, str]:
    """Digests of all that a run is at its end, and of each report on the way."""
    program = programs.make_program(small(**changes))
    c = program.config
    assert c.total_steps and c.eval_every and c.chunk_steps
    chunk, report = jax.jit(program.chunk), jax.jit(program.report)
    renew = jax.jit(program.renew)
    state = jax.jit(program.init)(jax.random.PRNGKey(c.seed), program.hparams)
    found = {}
    for step in range(c.chunk_steps, c.total_steps + 1, c.chunk_steps):
        state = chunk(renew(state), program.hparams, program.schedule)
        if step % c.eval_every == 0:
            state, values = report(renew(state), program.hparams, program.schedule)
            found[f"report at {step}"] = digest(dict(sorted(values.items())))
    agent = jax.jit(programs.unpack)(state).agent
    for name in ("actor", "critic"):
        network = getattr(agent, name)
        parts = {"masks": network.mask, "parameters": network.params, "target": network.target, "moments": network.adam}
        found |= {f"{name}'s {part}": digest(tree) for part, tree in parts.items()}
    return found | {"temperature": digest(getattr(agent, "log_alpha", np.float32(0))), "replay": digest(state.replay)}


def machine() -> dict[str, str]:
    """What the bits depend on."""
    flags = {name: os.environ.get(name, "") for name in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")}
    return {"processor": provenance.processor(), "python": platform.machine(), "jaxlib": jaxlib.__version__, **flags}


def main(arguments: list[str]) -> int:
    """Write or check."""
    if len(arguments) != 2 or arguments[0] not in ("write", "check"):
        print("error: use `python -m tests.golden write FILE`, or check.", file=sys.stderr)
        return 2
    what, path = arguments[0], Path(arguments[1])
    kept = json.loads(path.read_text()) if what == "check" else {"machine": machine()}
    if kept["machine"] != machine():
        print(f"error: {path} was written by another machine; write it here, on the earlier commit.", file=sys.stderr)
        return 2
    wrong = []
    for agent, compute, kind in itertools.product(("td3", "sac"), ("masked", "packed"), KINDS):
        name = " ".join([agent, compute, *map(str, kind.values())])
        found = frozen(agent=agent, compute=compute, **kind)
        apart = [part for part in found if what == "check" and found[part] != kept.get(name, {}).get(part)]
        kept[name] = found
        wrong += apart
        print(f"{name}: {', '.join(apart) + ' changed' if apart else 'the same' if what == 'check' else 'kept'}")
    if what == "write":
        path.write_text(json.dumps(kept, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
