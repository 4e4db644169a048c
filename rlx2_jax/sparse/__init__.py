"""Sparse training for the parameters of any model, with any optimiser of optax.

    from rlx2_jax import sparse

    density = sparse.erdos_renyi(0.9)        # at 90 % sparsity
    tx = sparse.rigl(optax.adam(3e-4), density=density, every=100, until=75_000)
    params, state = sparse.init(tx, params)  # sparse from the first step
    updates, state = tx.update(gradients, state, params, key=key)
    params = optax.apply_updates(params, updates)

A criterion of your own is a function of one leaf, and takes the place of any other:

    def saliency(weight, gradient, key):
        \"\"\"What the loss would change by, to first order, if the connection went.\"\"\"
        return jnp.abs(weight * gradient)

    tx = sparse.rigl(optax.adam(3e-4), density=density, until=75_000, drop=saliency)

So are densities, structures, schedules and which leaves are sparse (`Method`). Mixtures by module are optax's:

    tx = optax.multi_transform(
        {"still": sparse.static(optax.adam(3e-4), density=sparse.uniform(0.5)),
         "moving": sparse.rigl(optax.adam(3e-4), density=density, until=75_000)},
        labels,
    )

The room imports jax and optax, and the package's native kernels, which imports jax alone.
"""

from rlx2_jax.sparse import criteria, methods, schedules
from rlx2_jax.sparse.densities import by_path, connections, erdos_renyi, erdos_renyi_kernel, uniform
from rlx2_jax.sparse.errors import SparseError
from rlx2_jax.sparse.events import Event, initial_masks, rewire
from rlx2_jax.sparse.methods import Method
from rlx2_jax.sparse.schedules import constant, cosine, cubic
from rlx2_jax.sparse.structures import Structure, fan_in, n_of_m, unstructured
from rlx2_jax.sparse.topology import drop_and_grow, top_connections
from rlx2_jax.sparse.transform import (
    SparseState,
    constant_fan_in,
    dense,
    gradual,
    init,
    masks_of,
    n_m,
    rigl,
    rlx2,
    set_,
    sparsify,
    static,
)
from rlx2_jax.sparse.trees import apply, connections_of, density_of, matrices

__all__ = [
    "Event",
    "Method",
    "SparseError",
    "SparseState",
    "Structure",
    "apply",
    "by_path",
    "connections",
    "connections_of",
    "constant",
    "constant_fan_in",
    "cosine",
    "criteria",
    "cubic",
    "dense",
    "density_of",
    "drop_and_grow",
    "erdos_renyi",
    "erdos_renyi_kernel",
    "fan_in",
    "gradual",
    "init",
    "initial_masks",
    "masks_of",
    "matrices",
    "methods",
    "n_m",
    "n_of_m",
    "rewire",
    "rigl",
    "rlx2",
    "schedules",
    "set_",
    "sparsify",
    "static",
    "top_connections",
    "uniform",
    "unstructured",
]
