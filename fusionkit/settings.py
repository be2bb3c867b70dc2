"""The FUSIONKIT_* settings, from the environment and from the file that FUSIONKIT_CONFIG names.

The environment wins.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fusionkit import registry, rehearsal
from fusionkit.backend import CORE_SETTINGS
from fusionkit.errors import SettingError, nearest

Values = tuple[str, ...]  # that a setting may have; () for any
BACKEND = "FUSIONKIT_BACKEND"


@dataclass(frozen=True)
class Settings:
    """Every FUSIONKIT_* value that is set, checked, with the place it comes from."""

    values: Mapping[str, str]
    sources: Mapping[str, str]

    @property
    def strict(self) -> bool:
        """Whether the platform's order may not fall back."""
        return self.values.get("FUSIONKIT_STRICT") == "1"

    @property
    def mc2(self) -> bool:
        return self.values.get("FUSIONKIT_MC2") != "0"


@lru_cache(maxsize=1)
def current() -> Settings:
    """Read once, at the first dispatch: later changes of the environment do nothing.

    Raises:
        SettingError: an unknown FUSIONKIT_* name or value, with the nearest known one.
    """
    values, sources = _file_settings()
    for name, value in os.environ.items():
        if name.startswith("FUSIONKIT_"):
            values[name], sources[name] = value, "environment"
    known = _known(values, sources)
    for name, value in values.items():
        where = f"{sources[name]}: {name}"
        if name not in known:
            raise SettingError(f"{where} is not a setting; {nearest(name, known)}")
        if known[name] and value not in known[name]:
            raise SettingError(f"{where} must be {' or '.join(known[name])}, got {value!r}")
    return Settings(values, sources)


def value(name: str) -> str | None:
    """The value of one setting, or None."""
    return current().values.get(name)


def _known(values: dict[str, str], sources: dict[str, str]) -> dict[str, Values]:
    """The core's and every backend's; a vendor's alias is taken over under the name that it stands for."""
    known = dict(CORE_SETTINGS)
    for backend in registry.loaded():
        known.update(backend.settings)
        for alias, name in backend.environment_aliases.items():
            if alias in os.environ and name not in os.environ:
                values[name], sources[name] = os.environ[alias], f"environment ({alias})"
    absent = tuple(f"FUSIONKIT_{plugin.name}_".upper() for plugin in registry.plugins() if plugin.backend is None)
    known |= {name: () for name in values if name.startswith(absent)}  # of a backend that did not load
    for package in {_package(name) for name in values.keys() - known.keys()}:
        declared = _declared_by(package)
        for name in declared.keys() & values.keys():
            if sources[name] != "environment":
                raise SettingError(f"{sources[name]}: {name} must be set in the environment; its library reads no file")
        known.update(declared)
    return known


def _package(name: str) -> str:
    """FUSIONKIT_TOY_SIZE belongs to the package fusionkit_toy, where there is one."""
    return "_".join(name.split("_")[:2]).lower()


def _declared_by(package: str) -> Mapping[str, Values]:
    """The SETTINGS of a package, imported only where a name is left that nobody else knows."""
    if not package.isidentifier() or importlib.util.find_spec(package) is None:
        return {}
    declared: Mapping[str, Values] = getattr(importlib.import_module(package), "SETTINGS", {})
    return declared


def _file_settings() -> tuple[dict[str, str], dict[str, str]]:
    path = os.environ.get("FUSIONKIT_CONFIG")
    if not path:
        return {}, {}
    import tomllib  # 5 ms: not at `import fusionkit`

    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"FUSIONKIT_CONFIG must name a TOML file, got {path!r}: {error}") from error
    if "config" in content:
        raise SettingError(f"{path}: config cannot be set in the file itself")
    flat = _flatten(content)
    if rehearsal.VARIABLE in flat:
        raise SettingError(f"{path}: {rehearsal.VARIABLE} must be set in the environment; devices read no file")
    return flat, dict.fromkeys(flat, path)


def _flatten(content: dict[str, Any]) -> dict[str, str]:
    """`strict = true` is FUSIONKIT_STRICT=1; `[cpu] isa = "avx2"` is FUSIONKIT_CPU_ISA; backend may be a table."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        if key == "backend":
            table = value if isinstance(value, dict) else {"*": value}
            wishes = {op: listed(names, "backend") for op, names in table.items()}
            flat["FUSIONKIT_BACKEND"] = ";".join(f"{op}={','.join(names)}" for op, names in wishes.items())
        elif isinstance(value, dict):
            flat |= {f"FUSIONKIT_{key}_{name}".upper(): _text(inner) for name, inner in value.items()}
        else:
            flat[f"FUSIONKIT_{key}".upper()] = _text(value)
    return flat


def listed(names: object, source: str) -> Values:
    """One name, or several in order."""
    found = (names,) if isinstance(names, str) else tuple(names) if isinstance(names, Iterable) else ()
    if not found or not all(isinstance(name, str) for name in found):
        raise SettingError(f"{source} must name a backend, or several in order, got {names!r}")
    return found


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
