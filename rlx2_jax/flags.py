"""Configurations as absl flags, for launchers: one flag per field of `Config`, and the presets."""

from __future__ import annotations

import dataclasses
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from rlx2_jax import compilation, files, presets
from rlx2_jax.config import Config
from rlx2_jax.errors import ConfigError, DivergedError, RlxError, WorkdirError


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
        define = _DEFINERS[_type(field.name)]
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
            try:
                swept[field.name] = [_PARSERS[kind](text) for text in texts]
            except (ValueError, KeyError):
                raise ConfigError(f"sweep.{field.name}={','.join(texts)}: write {_SPELLINGS[kind]}.") from None
    return swept


def define_compilation_flags(values: flags.FlagValues = flags.FLAGS) -> Callable[[], None]:
    """Define `--compilation_cache` and `--precision`; the function returned, called once, sets JAX up as they say."""
    cache = flags.DEFINE_string(
        "compilation_cache",
        "~/.cache/rlx2_jax",
        "where compiled programs are kept; empty for nowhere",
        flag_values=values,
    )
    precision = flags.DEFINE_enum(
        "precision",
        compilation.PRECISIONS[0],
        compilation.PRECISIONS,
        "of matrix products on GPU and TPU, physics included; 'default' is the device's own (default: float32)",
        flag_values=values,
    )

    def set_up() -> None:
        compilation.use_cache(cache.value)
        compilation.use_precision(precision.value)

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
      ConfigError: anything else.
    """
    if text is None:
        return []
    parts = [part for part in text.split(",") if part]
    if not parts or not all(part.isdigit() for part in parts) or text == "0":
        raise ConfigError(f"seeds={text}: write 4 for the seeds 0 to 3, 3,7 for those two, or 7, for that one.")
    return list(range(int(text))) if text.isdigit() else list(dict.fromkeys(map(int, parts)))


def check_writable(directory: Path, flag: str) -> None:
    """Make the directory that a flag names, or whose file it names, before any work for it is done.

    Raises:
      WorkdirError: it cannot be written.
    """
    try:
        files.make_writable(directory)
    except OSError as error:
        raise WorkdirError(f"{directory} cannot be written ({error.strerror}); name another --{flag}.") from None


def run(main: Callable[[Sequence[str]], int | None]) -> None:
    """`absl.app.run` for people: a mendable error is one sentence and exit code 2 (1 if a run diverged)."""

    def guarded(argv: Sequence[str]) -> int | None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected argument {argv[1]!r}; every setting is a --flag.")
        logging.set_verbosity(logging.WARNING)
        try:
            return main(argv)
        except RlxError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1 if isinstance(error, DivergedError) else 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130

    app.run(guarded, flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parse flags; a wrong one is one sentence and exit code 2, and `--help` shows this launcher's own flags."""
    try:
        if any(a in ("--help", "-h", "-help") for a in argv[1:]):
            print(_help(argv[0]))
            sys.exit(0)
        return flags.FLAGS(list(argv), known_only=False)
    except flags.Error as error:
        print(f"error: {str(error).splitlines()[0]} (--help lists the flags).", file=sys.stderr)
        sys.exit(2)


def _help(program: str) -> str:
    module = sys.modules["__main__"]
    own = flags.FLAGS.flags_by_module_dict()
    mine = {f.name: f for m in (module.__file__ or "", program, __name__) for f in own.get(m, [])}
    config_names = [f.name for f in dataclasses.fields(Config)]
    swept = [n for n in mine if n.startswith("sweep.")]
    first = [n for n in mine if n not in config_names and n not in swept]
    lines = [
        (module.__doc__ or "").strip(),
        "",
        f"usage: {os.path.basename(program)} [--flag=value ...]",
        "",
    ]
    for name in [*first, *(n for n in config_names if n in mine)]:
        lines.append(f"  --{name:<24} {mine[name].help}")
    if swept:
        lines.append(
            f"  --{'sweep.<field>':<24} several values, separated by commas, of any of the fields above from --env on"
        )
    return "\n".join(lines)


def _type(name: str) -> type:
    """Of a field's values: bool, int, float, str or tuple (of whole numbers)."""
    annotation = typing.get_type_hints(Config)[name]
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return typing.get_origin(annotation) or annotation


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
    float: float,
    str: str,
    tuple: lambda text: tuple(map(int, text.split("x"))),
}
