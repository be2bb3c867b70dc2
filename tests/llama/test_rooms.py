"""The example's rooms know only the rooms before them; the commands stand above."""

from __future__ import annotations

import ast

import pytest

from tests.llama.conftest import EXAMPLE

PACKAGE = "examples.llama2_13b"
KNOWS = {
    "io": (),
    "parallel": ("io",),
    "model": ("io", "parallel"),
    "data": ("io", "model"),
    "train": ("io", "parallel", "model", "data"),
    "generate": ("io", "model", "data"),
    "bench": ("io", "parallel", "model", "train"),
}
COMMANDS = {
    "create": ("io", "model", "data"),
    "sft": ("io", "parallel", "model", "data", "train"),
    "export": ("io", "model", "data", "generate"),
    "predict": ("io", "model", "data", "generate"),
}


def rooms_of(file):
    """The rooms that a file imports from, wherever the import stands; a command is its own name."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            first, *rest = f"{node.module}.".removeprefix(f"{PACKAGE}.").split(".")
            found |= {first} if first else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[2] for alias in node.names if alias.name.startswith(f"{PACKAGE}.")}
    return found


def files(room):
    return sorted((EXAMPLE / room).glob("*.py"))


@pytest.mark.parametrize("room", KNOWS)
def test_a_room_knows_only_the_rooms_before_it(room):
    assert files(room)
    for file in files(room):
        assert rooms_of(file) <= {room, *KNOWS[room]}, file


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_knows_what_it_needs(command):
    assert rooms_of(EXAMPLE / f"{command}.py") <= set(COMMANDS[command])


def test_no_file_stands_in_two_places():
    """Every folder with code is a room above, and every file of a room is in the page."""
    assert {path.parent.name for path in EXAMPLE.glob("*/*.py")} == set(KNOWS)
    page = (EXAMPLE / "README.md").read_text()
    for room in KNOWS:
        assert all(f"  {file.name} " in page for file in files(room) if file.name != "__init__.py"), room
