"""Any optax optimiser as a sparse one.

Off the mask an update is `-p`, so that parameters are exactly zero there once it is applied: a sparse transformation
wraps the whole of what moves its parameters, and comes last in a `chain`. An event comes before the optimiser's step,
or instead of it; it sees the dense gradients, the optimiser those on the mask.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import optax

from rlx2_jax.sparse import events, methods, trees
from rlx2_jax.sparse.errors import SparseError
from rlx2_jax.sparse.methods import Method
from rlx2_jax.sparse.trees import Masks, Tree

P = ParamSpec("P")


class SparseState(NamedTuple):
    """State of a sparse optimiser: arrays alone, in a structure that never changes."""

    inner: Any
    """State of the wrapped optimiser; zero off the masks, but for what it adds to moments that have no gradient."""
    masks: Masks
    """A boolean array for each sparse leaf, None for a dense one."""
    step: jax.Array
    """Updates made so far, int32."""
    key: jax.Array
    """Key of random scores, where the caller gives none."""


def sparsify(
    inner: optax.GradientTransformation, method: Method, *, seed: int = 0
) -> optax.GradientTransformationExtraArgs:
    """Make an optimiser sparse.

    `update(gradients, state, params, *, key=None, event=None, **extra)` takes dense gradients. `key` is for random
    scores, one of the state's by default. `event` says whether an event is due, instead of the method's own times: an
    unbatched boolean keeps it a branch under `vmap`, where the state's counter would not. What else is given goes to
    the wrapped optimiser.

    Raises:
      SparseError: by `init`, a tree without a sparse leaf or with one that cannot hold its connections; by `update`,
        no parameters, or trees that do not fit each other.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: Tree) -> SparseState:
        key = _given_key(seed)
        if isinstance(params, _placeholder()):
            return SparseState(inner.init(params), params, jnp.zeros((), jnp.int32), key)
        masks = events.initial_masks(method, params, key)
        first = inner.init(trees.apply(params, masks))
        first = _reset(inner, first, masks) if method.reset_moments else first
        return SparseState(first, masks, jnp.zeros((), jnp.int32), key)

    def update(
        updates: Tree,
        state: SparseState,
        params: Tree | None = None,
        *,
        key: jax.Array | None = None,
        event: jax.Array | bool | None = None,
        **extra: Any,
    ) -> tuple[Tree, SparseState]:
        _check(updates, state, params)
        masks, due = state.masks, None
        if method.every or event is not None:
            due = method.due(state.step) if event is None else jnp.asarray(event)
            masks = _event(method, due, updates, state, params, key)
        # Moments are masked on their way into the optimiser, which leaves what is zero and has no gradient at zero. On
        # their way out it would keep XLA from fusing the update with them, at four times the cost.
        before = _reset(inner, state.inner, masks) if method.reset_moments else state.inner
        step = lambda: inner.update(trees.apply(updates, masks), before, params, **extra)
        moved, new = step() if due is None or not method.instead else _unless(due, step, before)
        moved = trees.map_masks(lambda mask, u, p: u if mask is None else jnp.where(mask, u, -p), masks, moved, params)
        return moved, SparseState(new, masks, optax.safe_increment(state.step), state.key)

    return optax.GradientTransformationExtraArgs(init, update)


def init(tx: optax.GradientTransformation, params: Tree, key: jax.Array | None = None) -> tuple[Tree, Any]:
    """Parameters that are zero off the first masks, and the optimiser's state.

    Args:
      tx: with one or several sparse transformations in it, in a `chain`, a `multi_transform` and the like.
      params: dense.
      key: for random first masks, and for random scores later; each transformation's seed by default.
    """
    token = _KEYS.set(None if key is None else map(functools.partial(jax.random.fold_in, key), itertools.count()))
    try:
        state = tx.init(params)
    finally:
        _KEYS.reset(token)
    return trees.apply(params, masks_of(state)), state


def masks_of(state: Any) -> Masks:
    """The masks in an optimiser's state, those of several sparse transformations as one tree.

    Raises:
      SparseError: there is none.
    """
    is_sparse = lambda x: isinstance(x, SparseState)
    found = [trees.own(x.masks) for x in jax.tree.leaves(state, is_leaf=is_sparse) if is_sparse(x)]
    if not found:
        raise SparseError("nothing in this state is sparse: wrap the optimiser, as in sparse.rigl(optax.adam(1e-3)).")
    return functools.reduce(trees.merge, found)


def _event(
    method: Method, due: jax.Array, gradients: Tree, state: SparseState, params: Tree, key: jax.Array | None
) -> Masks:
    """The masks after an event, if one is due."""

    def moved() -> Masks:
        own = state.key if key is None else key
        own = jax.random.fold_in(own, state.step)
        return events.rewire(method, params, state.masks, gradients, key=own, step=state.step).masks

    return jax.lax.cond(due, moved, lambda: state.masks)


def _unless(due: jax.Array, step: Callable[[], tuple[Tree, Any]], before: Any) -> tuple[Tree, Any]:
    """The optimiser's step, or none of it where an event is due."""
    moved, after = jax.eval_shape(step)
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), moved)
    # Gradients of another type than the parameters give moments of another one.
    kept = jax.tree.map(lambda x, new: x if x.dtype == new.dtype else x.astype(new.dtype), before, after)
    return jax.lax.cond(due, lambda: (nothing, kept), step)


def _reset(inner: optax.GradientTransformation, state: Any, masks: Masks) -> Any:
    """An optimiser's state with what it holds for each parameter zero off the masks.

    Raises:
      SparseError: optax cannot tell what is a parameter's in it.
    """

    def zero(moment: Any, mask: Any) -> Any:
        # Not every such leaf has the parameter's shape: factored moments have not.
        if mask is None or jnp.shape(moment) != jnp.shape(mask):
            return moment
        return jnp.where(mask, moment, jnp.zeros((), moment.dtype))

    absent = lambda x: isinstance(x, optax.MaskedNode)
    own = lambda m, mask: m if absent(m) else zero(m, mask)
    try:
        return optax.tree_map_params(inner, own, state, masks, is_leaf=absent)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise SparseError(
            "optax.tree_map_params cannot tell this optimiser's moments of parameters: use reset_moments=False."
        ) from None


def _check(gradients: Tree, state: SparseState, params: Tree | None) -> None:
    if params is None:
        raise SparseError("a sparse update needs the parameters: call tx.update(gradients, state, params).")
    if not isinstance(state, SparseState):
        raise SparseError("this is not the state of a sparse optimiser; call sparse.init with these parameters.")

    def fits(mask: Any, p: Any, g: Any) -> None:
        if jnp.shape(g) != jnp.shape(p) or (mask is not None and jnp.shape(mask) != jnp.shape(p)):
            raise SparseError(
                f"a parameter {jnp.shape(p)} meets a gradient {jnp.shape(g)} and a mask {jnp.shape(mask)}; "
                "call sparse.init with these parameters."
            )

    trees.map_masks(fits, state.masks, params, gradients)


_KEYS: contextvars.ContextVar[Iterator[jax.Array] | None] = contextvars.ContextVar("keys", default=None)
"""Keys for the transformations that `init` comes upon: optax hands them parameters alone."""


def _given_key(seed: int) -> jax.Array:
    keys = _KEYS.get()
    return jax.random.PRNGKey(seed) if keys is None else next(keys)


@functools.cache
def _placeholder() -> type:
    """What optax initialises a transformation with to see where its state holds parameters."""
    seen: list[Any] = []

    def init(params: Any) -> Any:
        seen.append(params)
        return params

    optax.tree_map_params(init, lambda x: x, 0)
    return type(seen[0])


def _transforming(
    make: Callable[P, Method],
) -> Callable[Concatenate[optax.GradientTransformation, P], optax.GradientTransformationExtraArgs]:
    """Wrap an optimiser by a method of the same arguments; `seed` is that of `sparsify`."""

    @functools.wraps(make)
    def wrap(inner: optax.GradientTransformation, *args: P.args, **parts: P.kwargs) -> Any:
        seed: Any = parts.pop("seed", 0)
        return sparsify(inner, make(*args, **parts), seed=seed)

    own = inspect.signature(make)
    first = inspect.Parameter("inner", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    wrap.__signature__ = own.replace(parameters=[first, *own.parameters.values()])  # type: ignore[attr-defined]
    return wrap


dense = _transforming(methods.dense)
"""An optimiser without sparsity, with the same interface."""
static = _transforming(methods.static)
"""Sparse by masks that never change."""
set_ = _transforming(methods.set_)
"""Drops small weights, grows at random."""
rigl = _transforming(methods.rigl)
"""Drops small weights, grows where gradients are large."""
rlx2 = _transforming(methods.rlx2)
"""RLx2's topology evolution."""
gradual = _transforming(methods.gradual)
"""Prunes small weights on the way from one density to another."""
n_m = _transforming(methods.n_m)
"""`n` of `m` consecutive inputs, which move as in `rigl`."""
constant_fan_in = _transforming(methods.constant_fan_in)
"""As many connections into each unit, which move as in `rigl`."""
