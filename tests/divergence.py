"""Two runs of one seed, masked and packed, side by side: how long are their masks the same?

  python -m tests.divergence [steps]

Prints one JSON object: the first step at which a mask differs (null for never), the links in which it does, the events
that had moved links until then, and the largest difference of a weight, relative to the largest weight, one chunk
before.
"""

import json
import sys

import jax
import jax.numpy as jnp

from rlx2_jax.config import Config
from rlx2_jax.networks import masking
from rlx2_jax.runtime import compilation
from rlx2_jax.training import programs


def kernels_of(state, what):
    return [k for name in ("actor", "critic") for k in masking.kernels(getattr(getattr(state.agent, name), what))]


def main(steps: int) -> None:
    if len(sys.argv) > 2:
        compilation.use_cache(sys.argv[2])
    runs = []
    for compute in ("masked", "packed"):
        program = programs.make_program(Config(compute=compute, total_steps=steps, chunk_steps=20))
        state = jax.jit(program.init)(jax.random.PRNGKey(0), program.hparams)
        runs.append((program, jax.jit(program.renew), jax.jit(program.chunk, donate_argnums=0), state))
    unpack = jax.jit(programs.unpack)
    found = {"steps": steps, "first_difference": None, "links": 0, "links_moved": 0, "weights_before": 0.0}
    chunk_steps = runs[0][0].config.chunk_steps
    for _ in range(steps // chunk_steps):
        runs = [(p, renew, chunk, chunk(renew(s), p.hparams, p.schedule)) for p, renew, chunk, s in runs]
        one, other = (unpack(s) for *_, s in runs)
        pairs = list(zip(kernels_of(one, "mask"), kernels_of(other, "mask"), strict=True))
        if links := sum(int((a & ~b).sum()) for a, b in pairs):
            found |= {"first_difference": int(one.progress.env_steps), "links": links}
            break
        weights = list(zip(kernels_of(one, "params"), kernels_of(other, "params"), strict=True))
        found["weights_before"] = max(float(jnp.abs(a - b).max() / jnp.abs(a).max()) for a, b in weights)
        found["links_moved"] = int(one.tally.links_grown)
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
