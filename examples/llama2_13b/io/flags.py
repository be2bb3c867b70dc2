"""Command-line flags from a dataclass: `--name value`, or a JSON file of them; the command line wins over the file."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import traceback
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from examples.llama2_13b.io import remarks
from examples.llama2_13b.io.text import ENCODING

Flags = TypeVar("Flags")


class Checked:
    """What a command's flags are checked with. COMMAND: how errors call it."""

    COMMAND: ClassVar[str]

    def require(self, condition: bool, name: str, rule: str) -> None:
        """Raises: ValueError, unless the condition holds; the flag is named."""
        if not condition:
            value = getattr(self, name)
            got = "an empty one" if isinstance(value, str) and not value.strip() else value
            raise ValueError(f"{self.COMMAND}: --{name} must be {rule}, got {got}")


def flag(help: str, default: Any = dataclasses.MISSING) -> Any:
    """A field with its line of help; without a default it must be given."""
    return dataclasses.field(default=default, metadata={"help": help})


def words(help: str) -> Any:
    """A field of type `tuple[str, ...]` for the words that belong to no flag."""
    return dataclasses.field(default=(), metadata={"help": help, "words": True})


def parse(kind: type[Flags], argv: list[str], program: str) -> Flags:
    """The flags in argv. A first argument that ends in .json names a file of them.

    Raises:
        ValueError: an unknown flag (the nearest is named), a value of the wrong type, a required flag that is missing.
    """
    if "--help" in argv or "-h" in argv:
        print(usage(kind, program))
        raise SystemExit(0)
    values: dict[str, Any] = {}
    if argv and argv[0].endswith(".json"):
        values = _from_file(kind, argv[0], program)
        argv = argv[1:]
    values |= _from_command_line(kind, argv, program)
    required = [field.name for field in _fields(kind).values() if field.default is dataclasses.MISSING]
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{program}: --{' and --'.join(missing)} must be given. --help lists every flag")
    return kind(**values)


def usage(kind: type[Any], program: str) -> str:
    lines = [f"python -m {program} [FLAGS.json] [--flag value ...]"]
    if field := _words(kind):
        lines[0] += f" [{field.name} ...]"
        lines.append(f"\n  {field.name:<32} {field.metadata['help']}")
    lines.append("")
    for field in _fields(kind).values():
        default = "required" if field.default is dataclasses.MISSING else f"default {field.default}"
        lines.append(f"  --{field.name:<30} {field.metadata['help']} ({default})")
    return "\n".join(lines)


def main(kind: type[Flags], run: Any, program: str) -> None:
    """Parse the command line and run; what a user can mend is one line, what Paddle raises keeps its trace."""
    try:
        with remarks.screens():
            code = run(parse(kind, sys.argv[1:], program))
    except (ValueError, OSError, ArithmeticError) as error:
        if "paddle" in Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts:
            raise
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        remarks.say("stopped", sys.stderr)
        code = 130  # as a shell says of Ctrl-C
    raise SystemExit(code)


def _fields(kind: type[Any]) -> dict[str, Any]:
    """By name, without the field of words."""
    return {field.name: field for field in dataclasses.fields(kind) if "words" not in field.metadata}


def _words(kind: type[Any]) -> Any:
    return next((field for field in dataclasses.fields(kind) if "words" in field.metadata), None)


def _from_file(kind: type[Any], path: str, program: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding=ENCODING))
    except FileNotFoundError:
        raise FileNotFoundError(f"{program}: {path}: no such file of flags") from None
    except ValueError as error:
        raise ValueError(f"{program}: {path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{program}: {path}: must be a JSON object of flags, got {type(content).__name__}")
    source = f"{program}: {path}"
    return {name: _checked(_types(kind, name, source), name, value, source) for name, value in content.items()}


def _from_command_line(kind: type[Any], argv: list[str], program: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--" and (field := _words(kind)):  # what follows may begin with dashes
            values[field.name] = (*values.get(field.name, ()), *words)
            break
        if not word.startswith("--") and (field := _words(kind)):
            values[field.name] = (*values.get(field.name, ()), word)
            continue
        if not word.startswith("--"):
            raise ValueError(f"{program}: expected a flag such as --{next(iter(_fields(kind)))}, got {word!r}")
        name, equals, text = word[2:].partition("=")
        kinds = tuple(each for each in _types(kind, name, program) if each is not type(None))  # no word stands for null
        if not equals:
            if words and not words[0].startswith("--"):
                text = words.pop(0)
            elif bool in kinds:
                text = "true"
            else:
                raise ValueError(f"{program}: --{name} must be followed by a value, got none")
        values[name] = _checked(kinds, name, _read(text, kinds), program)
    return values


def _read(text: str, kinds: tuple[type, ...]) -> Any:
    """The value that a word stands for; the word itself where it stands for none, so that the error shows it."""
    if bool in kinds and text.lower() in ("true", "false", "1", "0"):
        return text.lower() in ("true", "1")
    for number in (int, float):
        if number in kinds:
            try:
                return number(text)
            except ValueError:
                continue
    return text


def _types(kind: type[Any], name: str, source: str) -> tuple[type, ...]:
    hints = {field: hint for field, hint in typing.get_type_hints(kind).items() if field in _fields(kind)}
    if name not in hints:
        close = difflib.get_close_matches(name, hints, n=1, cutoff=0.7)  # logging_steps is at 0.61 of eval_steps
        advice = f"did you mean --{close[0]}?" if close else "--help lists every flag"
        raise ValueError(f"{source}: there is no flag --{name}; {advice}")
    hint = hints[name]
    return typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)


def _checked(kinds: tuple[type, ...], name: str, value: Any, source: str) -> Any:
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) not in kinds:
        rule = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise ValueError(f"{source}: --{name} must be of type {rule}, got {value!r}")
    return value
