"""`fusionkit doctor`: what is installed, what is missing, and the command that mends it."""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence

from fusionkit import policy, registry
from fusionkit.backend import Backend, Check
from fusionkit.errors import SettingError

NAME = "doctor"
HELP = "check the installation and every backend"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def _checks(backend: Backend) -> Sequence[Check]:
    try:
        return backend.doctor()
    except Exception as error:  # a plugin's doctor may be as broken as what it looks at
        return [Check("doctor", False, f"{type(error).__name__}: {error}", "report it to the backend's authors")]


def run(options: argparse.Namespace) -> int:
    problems = 0
    print(f"Python {platform.python_version()} on {platform.machine()}")
    if emulated := os.environ.get("FUSIONKIT_EMULATOR_DEVICE"):
        print(f"{emulated} is emulated: a software stand-in, no hardware")
    for plugin in registry.plugins():
        print(f"\n{plugin.name} ({plugin.distribution})")
        if plugin.backend is None:
            problems += 1
            print(f"  FAILED  {plugin.problem}")
            continue
        for check in _checks(plugin.backend):
            problems += not check.passed
            fix = "" if check.passed else f"\n          mend it with: {check.fix}"
            print(f"  {'ok    ' if check.passed else 'FAILED'}  {check.name}: {check.found}{fix}")
    try:
        settings = policy.settings()
        shown = [f"  {name}={value} ({settings.sources[name]})" for name, value in settings.values.items()]
        print("\n".join(["\nsettings", *(shown or ["  none"])]))
    except SettingError as error:
        problems += 1
        print(f"\nsettings\n  FAILED  {error}")
    print("\nEverything is well." if not problems else f"\nproblems: {problems}")
    return int(problems > 0)
