"""C sources of policies, compiled and called: within this process, as one of their own, or on a Cortex-M4."""

import ctypes
import pathlib
import shutil
import subprocess

import numpy as np
import pytest

from rlx2_jax.export import c_source
from rlx2_jax.export.description import Description
from rlx2_jax.export.program import Program

NATIVE = pathlib.Path(__file__).parent / "native"

STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-Os")

CORTEX_M4 = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-ffp-contract=off")

COMPILERS = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not installed"))
    for name in ("gcc", "clang")
]


SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def lacks_sanitizers(compiler: str, directory: pathlib.Path) -> bool:
    """Whether a compiler lacks the runtime of its sanitizers, which Debian has as a package beside clang's."""
    path = directory / "empty.c"
    path.write_text("int main(void) { return 0; }\n")
    command = [compiler, *SANITIZERS, str(path), "-o", str(path.with_suffix(""))]
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


def describe(program: Program, **changes) -> Description:
    """Of plain names and bounds of its own for each action."""
    inputs, outputs = program[0].size, program[-1].size
    values = {
        "name": "test",
        "observation_names": tuple(f"sensor {i}" for i in range(inputs)),
        "action_names": tuple(f"motor {i}" for i in range(outputs)),
        "action_low": tuple(-1.0 - i for i in range(outputs)),
        "action_high": tuple(2.0 + i for i in range(outputs)),
        "provenance": {},
    }
    return Description(**(values | changes))


def save(source: c_source.CSource, directory: pathlib.Path) -> pathlib.Path:
    """The path of the C file, its header beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{source.name}.h").write_text(source.header)
    path = directory / f"{source.name}.c"
    path.write_text(source.source)
    return path


def compile_with(compiler: str, *arguments: str | pathlib.Path) -> None:
    """Compile, and say nothing."""
    done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done.stderr


class Library:
    """A source as functions of this process."""

    def __init__(self, source: c_source.CSource, directory: pathlib.Path, compiler: str = "gcc"):
        path = save(source, directory)
        library = path.with_suffix(".so")
        macro = f"-D{source.name.upper()}_SELF_TEST"
        compile_with(compiler, *STRICT, macro, "-shared", "-fPIC", path, "-o", library, "-lm")
        self.functions = ctypes.CDLL(str(library))
        self.name = source.name

    def act(self, observations: np.ndarray, outputs: int, function: str = "act") -> tuple[np.ndarray, np.ndarray]:
        """Status `[K]` and actions `[K, A]` for observations `[K, O]`."""
        call = getattr(self.functions, f"{self.name}_{function}")
        observations = np.ascontiguousarray(observations, np.float32)
        actions = np.full((len(observations), outputs), 7, np.float32)
        status = [
            call(ctypes.c_void_p(observation.ctypes.data), ctypes.c_void_p(action.ctypes.data))
            for observation, action in zip(observations, actions, strict=True)
        ]
        return np.array(status), actions

    def self_test(self) -> int:
        """Mismatches."""
        return int(getattr(self.functions, f"{self.name}_self_test")())


def save_observations(observations: np.ndarray, directory: pathlib.Path) -> None:
    """Their bits, as the header that `native/policy_main.c` reads."""
    rows = ",\n".join("{" + ", ".join(f"0x{bits:08x}u" for bits in row.view(np.uint32)) + "}" for row in observations)
    count, size = observations.shape
    text = f"static const uint32_t observations[{count}][{size}] = {{\n{rows}\n}};\n"
    (directory / "observations.h").write_text(text)


def process(directory: pathlib.Path, compiler: str, *flags: str) -> str:
    """What the main program prints, compiled with a policy and its observations, which lie in a directory."""
    program = directory / f"main_{compiler}"
    sources = (directory / "policy.c", NATIVE / "policy_main.c")
    compile_with(compiler, *STRICT, *flags, "-DPOLICY_SELF_TEST", f"-I{directory}", *sources, "-o", program, "-lm")
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def cortex_m4(directory: pathlib.Path) -> str:
    """What the same prints on an emulated Cortex-M4."""
    program = directory / "main.elf"
    sources = (directory / "policy.c", NATIVE / "policy_main.c", NATIVE / "cortex_m4.c")
    flags = ("--specs=rdimon.specs", "-nostartfiles", f"-T{NATIVE / 'cortex_m4.ld'}", "-DPOLICY_SELF_TEST")
    warnings = [flag for flag in STRICT if flag != "-pedantic"]
    compile_with("arm-none-eabi-gcc", *warnings, *CORTEX_M4, *flags, f"-I{directory}", *sources, "-o", program, "-lm")
    machine = ("qemu-system-arm", "-M", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none")
    semihosting = ("-semihosting-config", "enable=on,target=native", "-kernel", str(program))
    done = subprocess.run([*machine, *semihosting], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout
