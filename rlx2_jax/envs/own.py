"""A person's own environments: found, looked at before anything compiles, and kept by name.

An environment is any object that follows `base.Environment`. It is known by the name that `register` gave its factory,
by where its factory is to be imported from, `package.module:function`, or, given as an object, by its class.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from rlx2_jax.envs.base import Environment, State
from rlx2_jax.envs.labels import Labels
from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import numerics, places

Factory = Callable[[], Environment]
"""Makes an environment; called once per process."""

_factories: dict[str, Factory] = {}
"""Those of `register`: a process's, as imported modules are."""


class OwnEnvironment:
    """An environment whose results have the protocol's types, whatever weak ones its functions gave."""

    @numerics.by_usual_rules
    def __init__(self, name: str, env: Environment):
        """Look at an environment, without computing anything.

        Raises:
          ConfigError: it does not follow the protocol, or one of its functions raises an error.
        """
        self._name, self._env = name, env
        self.observation_size, self.action_size = (
            _whole(name, size, getattr(env, size, None)) for size in ("observation_size", "action_size")
        )
        for method in ("reset", "step"):
            if not callable(getattr(env, method, None)):
                raise ConfigError(
                    f"env {name} has no method {method}; see rlx2_jax.envs.Environment for what it needs."
                )
        said = {field: getattr(env, field, None) for field in Labels._fields}
        try:
            labels = Labels.read(said, self.observation_size, self.action_size)
            self.observation_names, self.action_names, self.action_limits = labels
        except ValueError as error:
            raise ConfigError(f"env {name}: {error}; see rlx2_jax.envs.Environment for what it should be.") from None
        first = self._shape("reset", jax.random.PRNGKey(0))
        if any(jnp.issubdtype(leaf.dtype, jax.dtypes.extended) for leaf in jax.tree.leaves(first.physics)):
            raise ConfigError(
                f"env {name}: physics of {_signature(first.physics)} cannot be kept in files; keep jax.random.key_data "
                "of a key, and wrap it again in step."
            )
        after = self._shape("step", first, jax.ShapeDtypeStruct((self.action_size,), jnp.float32))
        if (before := _signature(first.physics)) != (found := _signature(after.physics)):
            raise ConfigError(
                f"env {name}: step leaves physics of {found}, reset gave {before}; give back arrays of the same kinds."
            )

    @property
    def mj_model(self) -> Any:
        """Bodies to look at; none if the environment has none."""
        return self._env.mj_model  # type: ignore[attr-defined]

    @property
    def dt(self) -> float:
        """Seconds of a step, if the environment says it."""
        return float(self._env.dt)  # type: ignore[attr-defined]

    def pose(self, physics: Any, data: Any) -> None:
        """Place the bodies as one state has them, if the environment has any."""
        self._env.pose(physics, data)  # type: ignore[attr-defined]

    @numerics.by_usual_rules
    def reset(self, key: jax.Array) -> State:
        """A fresh initial state."""
        return _typed(self._env.reset(key))

    @numerics.by_usual_rules
    def step(self, state: State, action: jax.Array) -> State:
        """Apply an action `[A]`."""
        return _typed(self._env.step(state, action))

    def _shape(self, method: str, *arguments: Any) -> State:
        """Shapes of what a method gives, looked at."""
        function = getattr(self._env, method)
        given = places.tried(f"env {self._name}: its {method}", jax.eval_shape, function, *arguments, passing=())
        if not isinstance(given, State):
            raise ConfigError(f"env {self._name}: {method} gives {type(given).__name__}; give an rlx2_jax.envs.State.")
        expected = {"observation": (self.observation_size,), "reward": (), "terminated": ()}
        for field, shape in expected.items():
            found = jnp.shape(getattr(given, field))
            if found != shape:
                raise ConfigError(
                    f"env {self._name}: {method} gives {field} of shape {list(found)}, not {list(shape)}; one "
                    "environment is one state, which we map over."
                )
        return jax.eval_shape(_typed, given)


def _whole(name: str, size: str, value: Any) -> int:
    """A size that an environment says."""
    try:
        found = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = 0
    if found < 1:
        raise ConfigError(f"env {name}: {size} is {value!r}; give it a whole number of 1 or more.")
    return found


def register(name: str, factory: Factory) -> None:
    """Make an environment known by a name (see `envs.register`).

    Raises:
      ConfigError: no such name.
    """
    if not name or set(name) & set(":,"):
        raise ConfigError(f"env name {name!r}: use one without a colon or a comma.")
    _factories[name] = factory


def name_of(env: Any, checked: Callable[[str], str]) -> str:
    """The name of an environment object (see `envs.name_of`); one that it says itself is `checked`.

    Raises:
      ConfigError: another object has this name already, or it can be no name.
    """
    if isinstance(env, type):
        raise ConfigError(f"env is the class {env.__qualname__}; give an environment, such as {env.__qualname__}().")
    own = getattr(env, "name", None)
    name = checked(own) if isinstance(own, str) else f"{type(env).__module__}:{type(env).__qualname__}"
    if not name or "," in name:
        raise ConfigError(f"env name {name!r}: use a word without a comma.")
    held = _factories.get(name)
    if held is not None and not (isinstance(held, _Held) and held.env == env):
        raise ConfigError(f"two environments are called {name}; give each an attribute `name` of its own.")
    _factories.setdefault(name, _Held(env))
    return name


class _Held:
    """A factory of what is there already."""

    def __init__(self, env: Environment):
        self.env = env

    def __call__(self) -> Environment:
        return self.env


def known(name: str) -> bool:
    """Whether a name is a registered one, or says where to import from."""
    return name in _factories or ":" in name


def names() -> tuple[str, ...]:
    """Registered names."""
    return tuple(_factories)


def load(name: str) -> OwnEnvironment:
    """The environment of a name that is `known`, made once per process and factory.

    Raises:
      ConfigError: it cannot be imported or made, or does not follow the protocol.
    """
    return _load(name, _factories[name] if name in _factories else imported(name))


@functools.cache
def _load(name: str, factory: Factory) -> OwnEnvironment:
    return OwnEnvironment(name, places.tried(f"env {name}: making it", factory, passing=()))


def imported(place: str) -> Any:
    """What `package.module:name` names; modules of the working directory are found, too.

    Raises:
      ConfigError: there is no such thing, or importing it raises an error.
    """
    found = places.imported(place, "function")
    if not callable(found):
        raise ConfigError(f"{place} is no function; name one that makes an environment.")
    return found


def place_of(name: str) -> str:
    """Where another process may import an environment from, as `package.module:name`.

    Raises:
      ConfigError: it lives in this process alone.
    """
    if name not in _factories:
        return name
    factory = _factories[name]
    place = f"{getattr(factory, '__module__', '__main__')}:{getattr(factory, '__qualname__', '')}"
    if place.startswith("__main__:") or not _leads_to(place, factory):
        raise ConfigError(
            f"env {name} is known to this process alone, and workers are others: name it package.module:function, or "
            "use another --parallel than processes."
        )
    return place


def _leads_to(place: str, factory: Factory) -> bool:
    """Whether a place names this very factory: parts of others, methods of objects and local functions have none."""
    try:
        return bool(imported(place) == factory)
    except ConfigError:
        return False


def _typed(state: State) -> State:
    """The same, each leaf an array of a fixed type."""
    return State(
        physics=jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state.physics),
        observation=jnp.asarray(state.observation, jnp.float32),
        reward=jnp.asarray(state.reward, jnp.float32),
        terminated=jnp.asarray(state.terminated, bool),
    )


def _signature(tree: Any) -> str:
    """Kinds of the arrays of a tree, in words."""
    leaves, structure = jax.tree.flatten(tree)
    kinds = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in leaves)
    return kinds if jax.tree_util.all_leaves([tree]) else f"[{kinds}] in {structure}"
