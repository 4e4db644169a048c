"""MuJoCo's C library under a task, inside the compiled program.

What a program carries of a simulation is an array of words: double-precision values in pairs of uint32, so that nothing
is rounded and JAX need not know doubles. They are MuJoCo's state (`mjSTATE_INTEGRATION`, controls among it) and the
position that the next step's displacement is measured from, which lags behind that state. No simulation is kept between
calls, so programs may be copied, mapped, resumed and run at once, and their bits are those of a loop over `mj_step`.

Our library calls MuJoCo's, which Python has loaded (`cpp/mujoco.cc`). Where it was not built, or devices are no CPUs, a
callback to Python does the same, several times slower.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rlx2_jax.envs.gym_tasks import Fields, Task
from rlx2_jax.envs.quiet import quiet
from rlx2_jax.errors import ConfigError
from rlx2_jax.runtime import native

SLOWER = (
    "MuJoCo runs through Python, several times slower than from the compiled program: the native library was not built "
    f"or does not serve this device; on a CPU, {native.BUILD}."
)
"""What is lost without the library, and the mend."""

NO_GRADIENT = "MuJoCo's C library has no derivatives: choose backend=mjx to differentiate through a step."
"""Why a step is not differentiated, and the mend."""


class Engine:
    """Resets and steps of one task; `physics` is `[words]`, uint32, as the module says."""

    def __init__(self, name: str, task: Task):
        """Make the task known to our library; `name` is its own."""
        with quiet():
            import mujoco

        self._mujoco: Any = mujoco
        self._task = task
        data = mujoco.MjData(task.model)
        self._shapes = [getattr(data, field).shape for field in _read(task)]
        bits = mujoco.mjtState
        self._state_size = mujoco.mj_stateSize(task.model, bits.mjSTATE_INTEGRATION)
        self._recipe = _Recipe.of(task, mujoco)
        self._key = f"{name}-{self._recipe.digest(task.model, mujoco)}"
        self._spare: list[Any] = []
        if native.available():
            self._add()
        else:
            print(SLOWER, file=sys.stderr)

    def reset(self, noise: jax.Array) -> tuple[jax.Array, Fields]:
        """A simulation at the model's initial state with noise `[nq + nv]` added, which is exact: float32 to double."""
        physics, fields = self._call(native.MUJOCO_RESET, self._reset_on_host, noise)
        return physics, self._fields(fields)

    def step(self, physics: jax.Array, ctrl: jax.Array, done: jax.Array) -> tuple[jax.Array, Fields]:
        """`frame_skip` substeps with controls `[nu]`; where `done`, nothing happens and the fields are zero."""
        call = jax.custom_jvp(lambda *operands: self._call(native.MUJOCO_STEP, self._step_on_host, *operands))
        call.defjvp(_refuse)
        physics, fields = call(physics, ctrl, done)
        return physics, self._fields(fields)

    def pack(self, data: Any) -> np.ndarray:
        """The physics of an `mujoco.MjData` of the task's model."""
        mujoco = self._mujoco
        row = np.zeros(self._state_size + 1)
        mujoco.mj_getState(self._task.model, data, row[:-1], mujoco.mjtState.mjSTATE_INTEGRATION)
        row[-1] = self._position(data)
        return row.view(np.uint32)

    def qpos(self, physics: Any) -> np.ndarray:
        """Coordinates `[nq]` of a simulation, on the host, in double precision."""
        mujoco, qpos = self._mujoco, np.zeros(self._task.model.nq)
        row = np.ascontiguousarray(physics).view(np.float64)
        bits = mujoco.mjtState
        mujoco.mj_extractState(self._task.model, row[:-1], bits.mjSTATE_INTEGRATION, qpos, bits.mjSTATE_QPOS)
        return qpos

    def _call(self, name: str, on_host: Callable[..., Any], *operands: jax.Array) -> Any:
        size = 1 + sum(map(math.prod, self._shapes))
        words = jax.ShapeDtypeStruct((2 * (self._state_size + 1),), jnp.uint32)
        results = [words, jax.ShapeDtypeStruct((size,), jnp.float32)]
        if native.available():
            return jax.ffi.ffi_call(name, results, vmap_method="broadcast_all")(*operands, task=self._key)
        return jax.pure_callback(on_host, results, *operands, vmap_method="broadcast_all")

    def _fields(self, flat: jax.Array) -> Fields:
        sizes = [math.prod(shape) for shape in self._shapes]
        parts = jnp.split(flat[1:], np.cumsum(sizes)[:-1])
        named = {name: x.reshape(s) for name, x, s in zip(_read(self._task), parts, self._shapes, strict=True)}
        return Fields(flat[0], **named)

    def _add(self) -> None:
        """Tell our library of the task.

        Raises:
          ConfigError: there is no MuJoCo to call, or an old one.
        """
        library, found = native.load(), shared_library()
        assert library is not None
        problem = "its library is missing"
        if found:
            theirs = ctypes.CDLL(str(found))
            handle = ctypes.c_void_p(theirs._handle)
            problem = library.rlx2_mujoco_add(handle, self._key.encode(), ctypes.byref(self._recipe)).decode()
            _stop_timing(theirs)
        if problem:
            raise ConfigError(
                f"the installed mujoco {self._mujoco.__version__} does not serve ({problem}): pip install 'mujoco>=4'."
            )

    # The portable path: what `cpp/mujoco.cc` does, row by row.

    def _reset_on_host(self, noise: Any) -> tuple[np.ndarray, np.ndarray]:
        mujoco, model = self._mujoco, self._task.model
        rows = np.asarray(noise).reshape(-1, model.nq + model.nv)
        physics, fields = self._empty(len(rows))
        with self._data() as data:
            for i, row in enumerate(rows):
                mujoco.mj_resetData(model, data)
                data.qpos += row[: model.nq]
                data.qvel += row[model.nq :]
                mujoco.mj_forward(model, data)
                physics[i] = self.pack(data)
                fields[i] = self._seen(data, 0.0)
        return _like(noise.shape[:-1], physics, fields)

    def _step_on_host(self, physics: Any, ctrl: Any, done: Any) -> tuple[np.ndarray, np.ndarray]:
        mujoco, model = self._mujoco, self._task.model
        before = np.asarray(physics).reshape(-1, physics.shape[-1])
        controls, stays = np.asarray(ctrl).reshape(-1, model.nu), np.asarray(done).ravel()
        after, fields = self._empty(len(before))
        after[:] = before
        with self._data() as data:
            for i in np.flatnonzero(~stays):
                row = before[i].copy().view(np.float64)
                mujoco.mj_setState(model, data, row[:-1], mujoco.mjtState.mjSTATE_INTEGRATION)
                data.ctrl[:] = controls[i]
                if self._advance(data):
                    after[i] = self.pack(data)
                    fields[i] = self._seen(data, self._position(data) - row[-1])
                else:
                    fields[i] = np.nan
        return _like(done.shape, after, fields)

    def _advance(self, data: Any) -> bool:
        """Whether the substeps neither failed nor became unstable."""
        mujoco, model = self._mujoco, self._task.model
        for warning in data.warning:
            warning.number = 0
        try:
            mujoco.mj_step(model, data, nstep=self._task.frame_skip)
            mujoco.mj_rnePostConstraint(model, data)
        except mujoco.FatalError:
            return False
        return not any(data.warning[kind].number for kind in _unstable(mujoco))

    @contextlib.contextmanager
    def _data(self) -> Iterator[Any]:
        """Data for one thread at a time: each row sets all of its state."""
        # Not a thread's own: MuJoCo's crash where a thread's end destroys them.
        try:
            data = self._spare.pop()
        except IndexError:
            data = self._mujoco.MjData(self._task.model)
        yield data
        self._spare.append(data)

    def _empty(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        size = 1 + sum(map(math.prod, self._shapes))
        return np.zeros((rows, 2 * (self._state_size + 1)), np.uint32), np.zeros((rows, size), np.float32)

    def _seen(self, data: Any, displacement: float) -> np.ndarray:
        return np.concatenate([[displacement], *(np.ravel(getattr(data, name)) for name in _read(self._task))])

    def _position(self, data: Any) -> float:
        name, weights = self._task.position()
        # Summed from the left, as by the library.
        return float(np.cumsum(weights * np.ravel(getattr(data, name)))[-1])


def shared_library() -> Path | None:
    """MuJoCo's shared library, which its package brings."""
    import mujoco

    found = (path for room in mujoco.__path__ for path in sorted(Path(room).glob("libmujoco*")))
    return next(found, None)


def _stop_timing(library: ctypes.CDLL) -> None:
    """Keep MuJoCo from timing its parts (`mjData.timer`), which takes 8 to 14 % of a step, unless a person does so.

    Its Python package has it timed in the whole process, by a clock of its own that Python does not show.
    """
    import mujoco

    if mujoco.get_mjcb_time() is None:
        ctypes.c_void_p.in_dll(library, "mjcb_time").value = None


class _Recipe(ctypes.Structure):
    """`Recipe` in `cpp/simulation.h`, field by field."""

    _fields_ = (
        ("model", ctypes.c_void_p),
        ("fields", ctypes.c_char_p),
        ("reference", ctypes.c_char_p),
        ("weights", ctypes.POINTER(ctypes.c_double)),
        ("weights_size", ctypes.c_int32),
        ("frame_skip", ctypes.c_int32),
        ("contact_forces", ctypes.c_int32),
        ("qpos", ctypes.c_int32),
        ("qvel", ctypes.c_int32),
        ("ctrl", ctypes.c_int32),
        ("warnings", ctypes.c_int32),
        ("unstable", ctypes.c_uint32),
    )

    @classmethod
    def of(cls, task: Task, mujoco: Any) -> _Recipe:
        """What a task asks for."""
        reference, weights = task.position()
        return cls(
            model=task.model._address,
            fields="".join(f"{name}," for name in _read(task)).encode(),
            reference=reference.encode(),
            weights=(ctypes.c_double * weights.size)(*weights),
            weights_size=weights.size,
            frame_skip=task.frame_skip,
            contact_forces="cfrc_ext" in task.reads,
            qpos=int(mujoco.mjtState.mjSTATE_QPOS),
            qvel=int(mujoco.mjtState.mjSTATE_QVEL),
            ctrl=int(mujoco.mjtState.mjSTATE_CTRL),
            warnings=int(mujoco.mjtWarning.mjNWARNING),
            unstable=sum(1 << kind for kind in _unstable(mujoco)),
        )

    def digest(self, model: Any, mujoco: Any) -> str:
        """Short, the same in every process: it is part of compiled programs, which outlive one."""
        image = np.zeros(mujoco.mj_sizeModel(model), np.uint8)
        mujoco.mj_saveModel(model, None, image)
        numbers = [getattr(self, name) for name, _ in self._fields_[4:]]
        said = repr((self.fields, self.reference, self.weights[: self.weights_size], numbers))
        return hashlib.sha256(image.tobytes() + said.encode()).hexdigest()[:16]


def _read(task: Task) -> tuple[str, ...]:
    return ("qpos", "qvel", *task.reads)


@functools.cache
def _unstable(mujoco: Any) -> tuple[int, ...]:
    """Kinds of warnings by which MuJoCo tells of an unstable simulation."""
    return tuple(int(kind) for name, kind in mujoco.mjtWarning.__members__.items() if name.startswith("mjWARN_BAD"))


def _like(leading: tuple[int, ...], *arrays: np.ndarray) -> Any:
    """Arrays of rows with the leading axes that a call has."""
    return tuple(array.reshape(*leading, array.shape[-1]) for array in arrays)


def _refuse(primals: Any, tangents: Any) -> Any:
    raise ConfigError(NO_GRADIENT)
