"""Sub-commands: the core's own, and those of the entry-point group "fusionkit.commands".

A sub-command is a module with `HELP`, `add_arguments(parser)` and `run(options) -> exit status`. The entry point's
name is what people type, with a dot for a space: "bench.mc2" is `fusionkit bench mc2`, a command beside `bench`.
`fusionkit --help` loads every such module, so what is slow to import is imported in `run`.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from fusionkit import entry_points
from fusionkit.errors import PluginError

GROUP = "fusionkit.commands"
OWN = {name: {f"fusionkit.cli.{name}": ["fusionkit"]} for name in ("ops", "explain", "doctor", "parity")}
PARTS = ("HELP", "add_arguments", "run")


@dataclass(frozen=True)
class Command:
    """A sub-command that loaded, or the problem that keeps it out."""

    name: str
    module: ModuleType | None
    problem: str = ""

    @property
    def help(self) -> str:
        return str(self.module.HELP) if self.module else f"not available: {self.problem}"


def offered() -> dict[str, dict[str, list[str]]]:
    """Each sub-command's name with the modules that it stands for and their distributions; the core's own first."""
    others = _others()
    return {name: OWN.get(name) or others[name] for name in (*OWN, *sorted(others))}


def refused() -> dict[str, str]:
    """The core's own names that other distributions offer, too: the core's sub-command stays, and this is said."""
    whose = {name: [each for said in modules.values() for each in said] for name, modules in _others().items()}
    advice = "Uninstall it, or ask its authors for another name"
    return {
        name: f"{name} is fusionkit's own command, and stays so; {' and '.join(whose[name])} offers one, too. {advice}"
        for name in OWN
        if name in whose
    }


def _others() -> dict[str, dict[str, list[str]]]:
    return {name.replace(".", " "): modules for name, modules in entry_points.offered(GROUP).items()}


@cache
def load(name: str) -> Command:
    """The sub-command of that name, one of `offered`. Whatever its module raises is its problem, and shown as such."""
    modules = offered()[name]
    distributions = [each for offering in modules.values() for each in offering]
    if len(modules) > 1:
        both = " and ".join(distributions)
        return Command(name, None, f"two distributions offer the command {name!r}: {both}. Uninstall one of them")
    (path,) = modules
    try:
        if ":" in path:
            raise PluginError(f"the entry point must name a module, got {path}")
        module = importlib.import_module(path)
        if absent := [part for part in PARTS if not hasattr(module, part)]:
            raise PluginError(f"{path} must define {', '.join(PARTS)}; {absent[0]} is missing")
        module.add_arguments(argparse.ArgumentParser())
    except (Exception, SystemExit) as error:
        return Command(name, None, f"{distributions[0]}: {type(error).__name__}: {error}")
    return Command(name, module)
