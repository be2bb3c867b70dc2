"""`fusionkit doctor`: what is installed, what is missing, and the command that mends it.

It vouches for what it tried: native libraries, communicator and Paddle run a small call in processes of their own.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import fusionkit
from fusionkit import foreign, policy, registry, settings
from fusionkit.attempt import tried
from fusionkit.backend import PROOF_IN_WORDS, Backend, Check
from fusionkit.errors import SettingError
from fusionkit.extras import REBUILD

HELP = "check the installation and every backend"

TWO_RANKS = """
import numpy as np
from fusionkit.parallel.parity import run_ranks

sums = run_ranks(2, lambda rank, communicator: communicator.all_reduce(np.full(8, rank + 1, np.float32)))
assert all((each == 3).all() for each in sums), sums
print("two ranks added their arrays")
"""


@dataclass(frozen=True)
class Section:
    """What is checked together, and its title."""

    title: str
    checks: tuple[Check, ...]

    def __str__(self) -> str:
        return "\n".join([self.title, *(map(_line, self.checks) if self.checks else ["  none"])])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def run(options: argparse.Namespace) -> int:
    sections = (_core(), *_backends(), _settings())
    problems = sum(not check.passed for section in sections for check in section.checks)
    if options.json:
        print(json.dumps({"well": not problems, "sections": [asdict(section) for section in sections]}, indent=1))
        return int(problems > 0)
    print(f"Python {platform.python_version()} on {platform.machine()}")
    for device_type in registry.device_types():
        if word := registry.stand_in(device_type):
            print(f"{device_type} is {word}: a stand-in, not the device itself")
    print("\n" + "\n\n".join(map(str, sections)))
    print("\nEverything is well." if not problems else f"\nproblems: {problems}")
    return int(problems > 0)


def _line(check: Check) -> str:
    fix = "" if check.passed else f"\n          mend it with: {check.fix}"
    return f"  {'ok    ' if check.passed else 'FAILED'}  {check.name}: {check.found}{fix}"


def _core() -> Section:
    checks = (*_foreign(), tried("communicator", TWO_RANKS, REBUILD))
    return Section(f"fusionkit {fusionkit.__version__}", checks)


def _foreign() -> Iterator[Check]:
    """Other projects' distributions of our name: harmless beside ours, and usually not meant."""
    for name, in_place in foreign.distributions():
        whose = f"another project's; this one is installed as {foreign.OURS}"
        if in_place:
            yield Check(name, False, f"{whose}, and its files stand in the place of ours", foreign.cure(name))
        else:
            yield Check(name, True, f"{whose}. If it was not meant: pip uninstall {name.partition(' ')[0]}")


def _backends() -> Iterator[Section]:
    for plugin in registry.plugins():
        title = title_of(plugin)
        if plugin.backend is None:
            fix = f"pip uninstall {plugin.distribution.partition(' ')[0]}, or install a version of it that fits"
            yield Section(title, (Check("plugin", False, str(plugin.problem), fix),))
        else:
            yield Section(title, tuple(_checks(plugin.backend)))


def title_of(plugin: registry.Plugin) -> str:
    proof = PROOF_IN_WORDS[plugin.backend.proven_on] if plugin.backend else ""
    return f"{plugin.name} ({plugin.distribution})" + (f": proof: {proof}" if proof else "")


def _checks(backend: Backend) -> Sequence[Check]:
    try:
        return backend.doctor()
    except Exception as error:  # a plugin's doctor may be as broken as what it looks at
        return [Check("doctor", False, f"{type(error).__name__}: {error}", "report it to the backend's authors")]


def _settings() -> Section:
    try:
        found = settings.current()
        policy.of_settings()
    except SettingError as error:
        return Section("settings", (Check("settings", False, str(error), "unset it, or give it a value that exists"),))
    shown = found.values.items()
    return Section("settings", tuple(Check(name, True, f"{value} ({found.sources[name]})") for name, value in shown))
