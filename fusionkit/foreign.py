"""Finds distributions of other projects that carry our package's name.

The public registry gives the name `fusionkit` to another project; this one is installed as `paddle-fusionkit`. Nothing
of ours is imported here: the command loads this file by its path when our package is hidden.
"""

import importlib.metadata
import re
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

PACKAGE, OURS = "fusionkit", "paddle-fusionkit"
HERE = Path(__file__).resolve().parent


def distributions() -> Iterator[tuple[str, bool]]:
    """("name version", whether its files stand in our package's place) of each that is not ours."""
    seen = set()
    for each in importlib.metadata.distributions():
        shown, folder = f"{each.metadata['Name']} {each.version}", str(each.locate_file(""))
        if _is_ours(each) or (shown, folder) in seen:
            continue
        seen.add((shown, folder))
        in_place = _has_files(each)
        if in_place or each.metadata["Name"] == PACKAGE:
            yield shown, in_place


def cure(name_and_version: str) -> str:
    """The order matters: removing the other one removes files of both."""
    other = name_and_version.partition(" ")[0]
    again = "pip install --force-reinstall --no-deps . (in fusionkit's source folder)"
    return f"pip uninstall {other}, then: {again}"


def _is_ours(distribution: Distribution) -> bool:
    return f"{PACKAGE}.eager:backend" in (distribution.read_text("entry_points.txt") or "")


def _has_files(distribution: Distribution) -> bool:
    if re.search(rf"^\"?{PACKAGE}/", distribution.read_text("RECORD") or "", re.MULTILINE):
        return True
    beside = Path(str(distribution.locate_file(PACKAGE)))
    return distribution.metadata["Name"] == PACKAGE and beside.is_dir() and beside.resolve() != HERE
