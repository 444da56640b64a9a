"""Command-line flags from a dataclass: the published spelling (underscores, ``--flag``, ``--flag=True``), no guessing.

`train.py`, `infer.py` and `utils/gen_mtp.py` keep the flags that their users' scripts pass today. tyro, which serves
the `syntheocc` command from the same dataclasses, refuses ``--use_cbgs=True`` for a switch; this module takes it.

Example:
    >>> @dataclass(kw_only=True)
    ... class Job:
    ...     seed: int = flag(0, "seed of the noise")
    ...     use_cbgs: bool = flag(False, "balance the classes")
    ...     mtp_path: str = flag("samples_syntheocc_surocc", "folder of the MPIs", env="$DATA_USED")
    >>> parse_flags(Job, ["--use_cbgs=True"], environ={"DATA_USED": "mine"})
    Job(seed=0, use_cbgs=True, mtp_path='mine')
"""

import argparse
import dataclasses
import difflib
import os
import string
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

Config = TypeVar("Config")

_TRUE = {"true", "1", "yes", "on"}
_FALSE = {"false", "0", "no", "off"}


def flag(
    default: Any,
    help: str,
    env: str | tuple[str, ...] = (),
    ignored: bool = False,
    aliases: tuple[str, ...] = (),
    positional: bool = False,
    repeated: bool = False,
) -> Any:
    """A dataclass field with a help text and, optionally, environment variables that replace its default.

    Args:
        default: the field's default.
        help: one line for ``--help``.
        env: templates such as ``"$OUTPUT_DIR"`` or ``"./ckp/$EXP_NAME"``; the first one whose variables are all set
            and not empty gives the default. A flag on the command line wins over the environment.
        ignored: the flag is only accepted; ``--help`` names such flags together, after those that do something.
        aliases: other names of the flag, as other programs call it.
        positional: the `syntheocc` command takes it without the flag's name.
        repeated: of a list: the flag may come several times, and each time adds to it. Of others the last one counts.
    """
    templates = (env,) if isinstance(env, str) else tuple(env)
    metadata = {
        "help": help,
        "env": templates,
        "ignored": ignored,
        "aliases": aliases,
        "positional": positional,
        "repeated": repeated,
    }
    return dataclasses.field(default=default, metadata=metadata)


def from_environment(templates: Sequence[str], environ: Mapping[str, str]) -> str | None:
    """The first template whose variables are all set and not empty, filled in; None if there is none."""
    present = {name: value for name, value in environ.items() if value}
    for template in templates:
        try:
            return string.Template(template).substitute(present)
        except KeyError:
            continue
    return None


def environment_defaults(config_class: type, environ: Mapping[str, str]) -> dict[str, Any]:
    """Defaults that the environment gives to fields of `config_class`, converted to their types.

    Raises:
        ValueError: a variable's value does not fit the field's type.
    """
    hints = typing.get_type_hints(config_class)
    values = {}
    for field in dataclasses.fields(config_class):
        given = from_environment(field.metadata.get("env", ()), environ)
        if given is not None:
            try:
                values[field.name] = _converter(hints[field.name])[0](given)
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise ValueError(
                    f"{given!r} from the environment ({', '.join(field.metadata['env'])}) does not fit {field.name}: "
                    f"{error}"
                ) from error
    return values


def parse_flags(
    config_class: type[Config],
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
    description: str | None = None,
) -> Config:
    """Read the flags of `config_class` (one per field, same name) and build it.

    Args:
        config_class: a dataclass with fields of type str, int, float, bool, Path, Literal, an optional one of these,
            or tuple[one of these, ...] (written with commas).
        argv: arguments without the program's name; `sys.argv[1:]` by default.
        environ: environment for defaults; `os.environ` by default.
        description: shown by ``--help``.

    Exits with status 2 and one line for an unknown flag, a bad value, or a ValueError that the class raises.
    """
    parser = _Parser(
        usage="%(prog)s [--flag=value ...]",
        description=description,
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=34),
    )
    hints = typing.get_type_hints(config_class)
    fields = [field for field in dataclasses.fields(config_class) if field.init]  # type: ignore[arg-type]
    try:
        defaults = environment_defaults(config_class, os.environ if environ is None else environ)
        for field in fields:
            _add_flag(parser, field, hints[field.name], defaults)
        ignored = [f"--{field.name}" for field in fields if field.metadata.get("ignored")]
        if ignored:
            text = f"accepted and ignored, so that command lines written for other scripts work: {' '.join(ignored)}"
            parser.epilog = textwrap.fill(text, 100, break_on_hyphens=False)
        known, unknown = parser.parse_known_args(argv)
        if unknown:
            names = [f"--{name}" for field in fields for name in _names(field)]
            near = difflib.get_close_matches(unknown[0].split("=")[0], names, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return config_class(**vars(known))
    except ValueError as error:
        parser.error(str(error))


class _Several(argparse.Action):
    """A list: what is given replaces the default, and a flag that comes again adds to it."""

    given: tuple = ()

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        if not values:
            raise argparse.ArgumentError(self, "has no value; give one, or leave the flag out")
        self.given = (*self.given, *values)
        setattr(namespace, self.dest, self.given)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: with fifty flags, the usage would push the reason off the screen."""

    def error(self, message: str) -> typing.NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the flags)\n")


def _add_flag(
    parser: argparse.ArgumentParser, field: dataclasses.Field, hint: Any, defaults: Mapping[str, Any]
) -> None:
    default = defaults.get(field.name, field.default)
    required = default is dataclasses.MISSING
    convert, choices, is_switch = _converter(hint)
    options: dict[str, Any] = {"type": convert, "required": required, "dest": field.name}
    if not required:
        options["default"] = default
    if is_switch:
        options |= {"nargs": "?", "const": True}
    if field.metadata.get("repeated"):
        options["action"] = _Several
    options["metavar"] = _placeholder(hint, choices, is_switch)
    text = field.metadata.get("help", "")
    if not required and default not in (None, ()):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default: {shown})"
    options["help"] = argparse.SUPPRESS if field.metadata.get("ignored") else text.replace("%", "%%")
    parser.add_argument(*(f"--{name}" for name in _names(field)), **options)


def _names(field: dataclasses.Field) -> tuple[str, ...]:
    """A field's flag and its other names, without the hyphens."""
    return (field.name, *field.metadata.get("aliases", ()))


def _placeholder(hint: Any, choices: tuple | None, is_switch: bool) -> str:
    """What ``--help`` shows in the place of a value."""
    if choices:
        return "{" + ",".join(str(choice) for choice in choices) + "}"
    if is_switch:
        return "True|False"
    return "A[,B,...]" if typing.get_origin(hint) is tuple else "VALUE"


def _converter(hint: Any) -> tuple[Callable[[str], Any], tuple | None, bool]:
    """(text -> value, choices, is it a switch) for a type hint."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not type(None)]
        if len(inner) != 1:
            raise TypeError(f"a flag has one type (and may be optional), got {hint}")
        return _converter(inner[0])
    if origin is tuple:
        convert, choices, _ = _converter(arguments[0])
        return _list_of(convert), choices, False
    if origin is Literal:
        return _one_of(arguments), arguments, False
    if hint is bool:
        return _boolean, None, True
    if hint in (str, int, float, Path):
        return hint, None, False
    raise TypeError(f"no flag can be made of a field of type {hint}")


def _boolean(text: str) -> bool:
    if text.lower() in _TRUE:
        return True
    if text.lower() in _FALSE:
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")


def _one_of(choices: tuple) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        for choice in choices:
            if text == str(choice):
                return choice
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(map(str, choices))}")

    return convert


def _list_of(convert: Callable[[str], Any]) -> Callable[[str], tuple]:
    def convert_all(text: str) -> tuple:
        try:
            return tuple(convert(part.strip()) for part in text.split(",") if part.strip())
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}; separate values by commas") from error

    return convert_all
