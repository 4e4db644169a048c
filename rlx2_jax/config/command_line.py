"""Configurations as absl flags, for launchers: one flag per field of `Config`, and the presets."""

from __future__ import annotations

import dataclasses
import faulthandler
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

from absl import flags, logging

from rlx2_jax.config import NEVER, Config, presets
from rlx2_jax.config.fields import Group
from rlx2_jax.errors import ConfigError, DivergedError, RlxError, WorkdirError
from rlx2_jax.io.streams import Stream
from rlx2_jax.runtime import compilation

flags.disclaim_key_flags()  # What is defined through this module belongs to the launcher that asks for it.

MOST_SEEDS = 10_000
"""Largest number of seeds in one command."""

HELP_FULL = "--helpfull"
"""Asks for all flags."""

HELP = frozenset({"-h", "-?", "-help", "--help", "--helpshort", HELP_FULL})
"""Ask for help."""

HELP_WIDTH = 100
"""Columns of the short help."""


def define_path(
    name: str, default: str | None, help: str, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[Any]:
    """Define a flag that names a file or a directory, where `~` is a home directory; its value is a `Path`."""
    return flags.DEFINE(_PathParser(Path), name, default, help, flag_values=flag_values)


def define_place(
    name: str, default: str | None, help: str, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[Any]:
    """Define a flag like `define_path`; its value is a string, as configurations hold it."""
    return flags.DEFINE(_PathParser(str), name, default, help, flag_values=flag_values)


class _PathParser(flags.ArgumentParser):
    """Reads a path as text, and gives it as `kind`."""

    def __init__(self, kind: type):
        self._kind = kind

    def parse(self, argument: Any) -> Any:
        return self._kind(expand(str(argument)))


def expand(text: str) -> str:
    """A path as a person writes it, with the home directory in the place of `~`.

    Raises:
      ValueError: no path, or no home directory.
    """
    if not text:
        raise ValueError("name a path, or leave the flag out")
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        raise ValueError("there is no home directory to put in the place of ~; write the whole path") from None


def paths(flag: flags.FlagHolder[list[str]]) -> list[Path]:
    """The paths that a flag lists.

    Raises:
      ConfigError: one of them is none.
    """
    try:
        return [Path(expand(text)) for text in flag.value]
    except ValueError as error:
        raise ConfigError(f"{flag.name}={','.join(flag.value)}: {error}.") from None


def define_config_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define `--preset` and one flag per configuration field; unset ones keep the preset's value."""
    flags.DEFINE_list(
        "preset",
        [],
        "named settings, left to right: " + ", ".join(presets.PRESETS),
        flag_values=values,
    )
    defaults = Config()
    for field in dataclasses.fields(Config):
        default = getattr(defaults, field.name)
        help = field.metadata["help"]
        if default is not None:
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
            help = f"{help} (default: {shown})"
        define = define_place if field.metadata["place"] else _DEFINERS[_type(field.name)]
        define(field.name, None, help, flag_values=values)


def define_sweep_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define `--sweep.<field>`, a list of values, for every configuration field."""
    for field in dataclasses.fields(Config):
        help = f"several values of {field.name}" + (", widths joined by x" if field.name == "hidden" else "")
        flags.DEFINE_list(f"sweep.{field.name}", [], help, flag_values=values)


def read_swept(values: flags.FlagValues = flags.FLAGS) -> dict[str, list[Any]]:
    """The values that the command line gives to each swept field.

    Raises:
      ConfigError: a value of another type than the field's.
    """
    swept = {}
    for field in dataclasses.fields(Config):
        texts = values[f"sweep.{field.name}"].value
        if texts:
            kind = _type(field.name)
            parse = expand if field.metadata["place"] else _PARSERS[kind]
            try:
                swept[field.name] = [parse(text) for text in texts]
            except (ValueError, KeyError):
                raise ConfigError(f"sweep.{field.name}={','.join(texts)}: write {_SPELLINGS[kind]}.") from None
    return swept


def define_compilation_flags(values: flags.FlagValues = flags.FLAGS) -> Callable[[], None]:
    """Define `--compilation_cache` and `--precision`; the function returned, called once, sets JAX up as they say."""
    cache = flags.DEFINE_string(
        "compilation_cache",
        "~/.cache/rlx2_jax",
        "of compiled programs, empty for none (default: ~/.cache/rlx2_jax)",
        flag_values=values,
    )
    precision = flags.DEFINE_enum(
        "precision",
        compilation.PRECISIONS[0],
        compilation.PRECISIONS,
        "of matrix products on GPU and TPU; physics included, 'default' is the device's own (default: float32)",
        flag_values=values,
    )

    def set_up() -> None:
        compilation.use_precision(precision.value)
        try:
            compilation.use_cache(cache.value)
        except RuntimeError:
            print("no home directory: compiled programs are not kept; name a --compilation_cache.", file=sys.stderr)

    return set_up


def read_given(values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """The settings that the command line names, and the presets under `preset` if it names any.

    Raises:
      ConfigError: widths that are no numbers.
    """
    given: dict[str, Any] = {}
    for field in dataclasses.fields(Config):
        value = values[field.name].value
        if value is not None:
            given[field.name] = _whole_numbers(field.name, value) if field.name == "hidden" else value
    return given | ({"preset": values["preset"].value} if values["preset"].value else {})


def _whole_numbers(name: str, texts: Sequence[str]) -> tuple[int, ...]:
    try:
        return tuple(map(int, texts))
    except ValueError:
        raise ConfigError(f"{name}={','.join(texts)}: write whole numbers, such as 256,256.") from None


def read_config(values: flags.FlagValues = flags.FLAGS) -> Config:
    """The configuration the command line asks for.

    Raises:
      ConfigError: an unknown preset.
    """
    given = read_given(values)
    return presets.make_config(given.pop("preset", ()), given)


def parse_seeds(text: str | None) -> list[int]:
    """`4` is 0 to 3, `3,7` those two, `7,` that one.

    Raises:
      ConfigError: anything else, or more than `MOST_SEEDS`.
    """
    if text is None:
        return []
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.isdecimal() for part in parts) or text == "0":
        raise ConfigError(f"seeds={text}: write 4 for the seeds 0 to 3, 3,7 for those two, or 7, for that one.")
    if any(len(part) > len(str(NEVER)) or int(part) > NEVER for part in parts):
        raise ConfigError(f"seeds={text}: a seed is {NEVER} at most.")
    if len(parts) > MOST_SEEDS or (text.isdecimal() and int(text) > MOST_SEEDS):
        raise ConfigError(f"seeds={text}: name {MOST_SEEDS:,} seeds at most.")
    return list(range(int(text))) if text.isdecimal() else list(dict.fromkeys(map(int, parts)))


def check_writable(directory: Path, flag: str) -> None:
    """See that the directory that a flag names, or whose file it names, can be written or made; makes nothing.

    Raises:
      WorkdirError: it cannot.
    """
    try:
        there = next(path for path in (directory, *directory.parents) if path.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise WorkdirError(f"{directory} cannot be written ({error.strerror}); name another --{flag}.") from None


def check_output(path: Path, flag: str, endings: Sequence[str]) -> None:
    """See that the file that a flag names can be written, and is of a kind that we can write.

    Raises:
      ConfigError: another ending.
      WorkdirError: a directory, or a file that cannot be written.
    """
    if path.suffix.lower() not in endings:
        *others, last = endings
        raise ConfigError(
            f"{flag}={path}: name a file that ends with {', '.join(others) + ' or ' * bool(others)}{last}."
        )
    if path.is_dir():
        raise WorkdirError(f"{path} is a directory; name a file with --{flag}.")
    check_writable(path.parent, flag)


def command(*arguments: str, keep: Sequence[str] = ()) -> str:
    """A command that starts this launcher again and can be pasted into a shell.

    Args:
      arguments: what it is given.
      keep: names of flags that it is given again as they were, if they were.
    """
    kept = [f"--{name}={flags.FLAGS[name].value}" for name in keep if flags.FLAGS[name].present]
    python = "python" if shutil.which("python") == sys.executable else sys.executable
    return shlex.join([python, sys.argv[0], *arguments, *kept])


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """Parse flags, do `main` and exit, for people.

    A mendable error is one sentence and exit code 2 (1 if a run diverged). Whoever reads standard output or standard
    error may go away; that ends nothing.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # Names of files are of any language, terminals are not.
    sys.stdout = typing.cast(TextIO, Stream(sys.stdout, BrokenPipeError))
    sys.stderr = typing.cast(TextIO, Stream(sys.stderr, OSError))
    faulthandler.enable(2)
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING)
    sys.exit(_guarded(main))


def _guarded(main: Callable[[Sequence[str]], int | None]) -> int | None:
    try:
        code = main(_parse(sys.argv))
        sys.stdout.flush()
        return code
    except RlxError as error:
        return _refuse(str(error), 1 if isinstance(error, DivergedError) else 2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except compilation.NO_DEVICE:
        if (sentence := compilation.why_no_device()) is None:
            raise
        return _refuse(sentence)


def _refuse(sentence: str, code: int = 2) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return code


def _parse(argv: Sequence[str]) -> list[str]:
    """Parse flags; a wrong one is one sentence and exit code 2, and `--help` shows the flags of this launcher."""
    if asked := HELP & set(argv[1:]):
        print(_help(argv[0], full=HELP_FULL in asked), flush=True)
        sys.exit(0)
    try:
        rest = flags.FLAGS(list(argv), known_only=False)
        _check_numbers(flags.FLAGS)
        if len(rest) > 1:
            raise flags.Error(f"unexpected argument {rest[1]!r}; write every setting as --flag=value")
        return rest
    # Flags that take no value, and files of flags that are no text, are no `flags.Error`.
    except (flags.Error, ValueError, OSError) as error:
        sentence = str(error).splitlines()[0].rstrip(".")
        for words, plain in _PLAINLY.items():
            sentence = re.sub(words, plain, sentence)
        sys.exit(_refuse(f"{sentence} (--help lists the flags)."))


def _check_numbers(values: flags.FlagValues) -> None:
    """Refuse numbers that no setting can be, whichever flag has them."""
    for name in values:
        value = values[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise flags.IllegalFlagValueError(f"flag --{name}={value}: use a finite number")
        if isinstance(value, int) and abs(value) > NEVER:
            raise flags.IllegalFlagValueError(f"flag --{name}={value}: use at most {NEVER}")


def _help(program: str, *, full: bool) -> str:
    """Help of this launcher: all its flags, or, of the configuration's, those that people need most, on a screen."""
    document = (sys.modules["__main__"].__doc__ or "").strip()
    mine = _launchers_flags(program)
    # A launcher has all settings or none; a flag of its own may bear the name of one.
    settings = dataclasses.fields(Config)
    settings = settings if all(field.name in mine for field in settings) else ()
    names = {field.name for field in settings}
    first = [name for name in mine if name not in names and not name.startswith("sweep.")]
    usage = f"usage: {os.path.basename(program)} [--flag=value ...]"
    swept = "several values, separated by commas, of any "
    if full or not settings:
        lines = [document, "", usage, ""]
        lines += [f"  --{name:<24} {mine[name].help}" for name in [*first, *(field.name for field in settings)]]
        if len(mine) > len(first) + len(names):
            lines.append(f"  --{'sweep.<field>':<24} {swept}of the fields above from --env on")
        return "\n".join(lines)
    groups: dict[str, dict[str, str]] = {name: {} for name in ("this command", *Group)}
    for field in settings:
        if (group := field.metadata["group"]) is not None:
            groups[group][field.name] = field.metadata["brief"]
    for name in first:
        groups[Group.COMPUTING if name in _COMPUTING else "this command"][name] = str(mine[name].help)
    if len(mine) > len(first) + len(names):
        groups["this command"]["sweep.<field>"] = f"{swept}setting"
    lines = [*textwrap.wrap(document.partition("\n")[0], HELP_WIDTH), usage]
    for group, flags_of_it in groups.items():
        lines += [f"{group}:", *(_help_line(name, text) for name, text in flags_of_it.items())]
    return "\n".join([*lines, f"{HELP_FULL} has all {len(settings)} settings, with what each choice is."])


def _launchers_flags(program: str) -> dict[str, flags.Flag]:
    """Flags that the launcher defines, and those that this module defines for it."""
    own = flags.FLAGS.flags_by_module_dict()
    modules = (sys.modules["__main__"].__file__ or "", program, __name__)
    return {flag.name: flag for module in modules for flag in own.get(module, [])}


def _help_line(name: str, text: str) -> str:
    """One line on a flag: what is said of it, as far as it fits."""
    start = f"  --{name:<18} "
    room = HELP_WIDTH - len(start)
    if len(text) > room:
        text = text.partition(";")[0]
    return start + textwrap.shorten(text, room, placeholder=" ...")


def _type(name: str) -> type:
    """Type of a field's values: bool, int, float, str or tuple (of whole numbers)."""
    annotation = typing.get_type_hints(Config)[name]
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return typing.get_origin(annotation) or annotation


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


_COMPUTING = ("compilation_cache", "precision")
"""Flags of `define_compilation_flags`."""

_PLAINLY = {
    r"invalid literal for int\(\).*": "write a whole number in digits, such as 100000",
    r"could not convert string to float.*": "write a number, such as 0.9",
    r" \?$": "?",
}
"""What Python and absl say of a value, and how a person is told."""

_DEFINERS: dict[type, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
    tuple: flags.DEFINE_list,
}

_SPELLINGS: dict[type, str] = {
    bool: "true, false or both, separated by a comma",
    int: "whole numbers, separated by commas",
    float: "numbers, separated by commas",
    str: "words, separated by commas",
    tuple: "widths joined by x, such as 64x64,256x256",
}

_PARSERS: dict[type, Callable[[str], Any]] = {
    bool: lambda text: {"true": True, "false": False}[text.lower()],
    int: int,
    float: _finite,
    str: str,
    tuple: lambda text: tuple(map(int, text.split("x"))),
}
