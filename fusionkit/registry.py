"""Finds backends: entry points of the group "fusionkit.backends", loaded by stevedore at the first dispatch.

A plugin that does not load, speaks another interface version or has a kernel with a wrong signature never breaks an
import: it is listed as unavailable with its own error. Two distributions that offer one name are an error for every
dispatch, because stevedore would let the last one win in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from fusionkit import entry_points, frameworks, kernel_function
from fusionkit.backend import ANY_DEVICE, CORE_SETTINGS, INTERFACE_VERSION, PROOF_IN_WORDS, Backend, Kernel, Proof
from fusionkit.call import Call
from fusionkit.errors import PluginError, SettingError, argument_error, nearest
from fusionkit.frameworks import custom_device
from fusionkit.ops import OP_NAMES, load_spec

GROUP = "fusionkit.backends"


@dataclass(frozen=True)
class Plugin:
    """What one entry point gave: a backend, or the problem that keeps it out."""

    name: str
    distribution: str
    backend: Backend | None
    problem: str | None = None
    duplicate: bool = False


@dataclass(frozen=True)
class BackendStatus:
    """A row of `fk.backends()`."""

    name: str
    available: bool
    reason: str
    device_types: tuple[str, ...]
    ops: tuple[str, ...]
    distribution: str
    proven_on: Proof = "not stated"

    def __str__(self) -> str:
        state = "available" if self.available else f"not available: {self.reason}"
        if self.device_types and (proof := PROOF_IN_WORDS[self.proven_on]):  # none: the plugin did not load
            state = f"{proof}; {state}"
        return f"{self.name} ({self.distribution}): {state}"


@lru_cache(maxsize=1)
def plugins() -> tuple[Plugin, ...]:
    """Every plugin that is installed, by name. Loads them once."""
    import stevedore  # 50 ms: not at `import fusionkit`

    found = entry_points.offered(GROUP)
    problems: dict[str, str] = {}

    def failed(manager: Any, point: Any, error: BaseException) -> None:
        problems[point.name] = f"{type(error).__name__}: {error}"

    single = [name for name, offering in found.items() if len(offering) == 1]
    loaded: dict[str, object] = {}
    for name in single:  # each alone: a module that ends the process ends only its own loading
        try:
            manager: Any = stevedore.NamedExtensionManager(GROUP, names=[name], on_load_failure_callback=failed)
            loaded |= {extension.name: extension.plugin for extension in manager}
        except SystemExit as error:
            problems[name] = f"SystemExit: {error}"
    distributions = {name: [each for said in found[name].values() for each in said] for name in sorted(found)}
    return tuple(
        _plugin(name, offering, loaded.get(name), problems.get(name), name not in single)
        for name, offering in distributions.items()
    )


def _plugin(name: str, offering: list[str], loaded: object, problem: str | None, duplicate: bool = False) -> Plugin:
    distribution = " and ".join(offering)
    if duplicate:
        text = f"two distributions offer the backend {name!r}: {distribution}. Uninstall one of them"
        return Plugin(name, distribution, None, text, duplicate=True)
    if problem is None:
        try:
            check(name, loaded)
        except PluginError as error:
            problem = str(error)
        except Exception as error:  # data of another shape than declared: the plugin's problem, shown as such
            problem = f"{name}: what the plugin declares cannot be read: {type(error).__name__}: {error}"
    if problem is not None:
        return Plugin(name, distribution, None, problem)
    assert isinstance(loaded, Backend)
    return Plugin(name, distribution, loaded)


def check(name: str, loaded: object) -> None:
    """Hold a plugin against the interface.

    Raises:
        PluginError: not a Backend, another interface version or name, an op that does not exist, or a kernel whose
            signature is not the spec's, up to parameters that it leaves out; the text prints both.
    """
    if not isinstance(loaded, Backend):
        raise PluginError(f"{name}: the entry point must load a fusionkit.Backend, got {type(loaded).__name__}")
    if loaded.interface_version != INTERFACE_VERSION:
        raise PluginError(
            f"{name}: written for backend interface {loaded.interface_version}, this fusionkit has {INTERFACE_VERSION}"
            ". Install versions that fit"
        )
    if loaded.name != name:
        raise PluginError(f"{name}: the entry point's name must be the backend's, got {loaded.name!r}")
    if loaded.proven_on not in PROOF_IN_WORDS:
        raise PluginError(f"{name}: proven_on must be {', '.join(PROOF_IN_WORDS)}, got {loaded.proven_on!r}")
    for op, kernel in loaded.kernels.items():
        if op not in OP_NAMES:
            raise PluginError(f"{name}: no op is called {op!r}; there are: {', '.join(OP_NAMES)}")
        for framework in kernel.for_framework:
            _check_framework(name, op, framework)
        for each in (kernel, *kernel.for_framework.values()):
            _check_kernel(name, op, each)
    for setting in loaded.settings:
        if not setting.startswith(own := f"FUSIONKIT_{name}_".upper()):
            raise PluginError(f"{name}: its settings must be called {own}..., got {setting!r}")
    for alias, setting in loaded.environment_aliases.items():
        if setting not in (known := [*CORE_SETTINGS, *loaded.settings]):
            raise PluginError(f"{name}: {alias} stands for {setting!r}, which is no setting; {nearest(setting, known)}")
    for op in loaded.gaps:
        if op not in OP_NAMES or op in loaded.kernels:
            raise PluginError(f"{name}: gaps must name ops without a kernel, got {op!r}")


def _check_kernel(name: str, op: str, kernel: Kernel) -> None:
    for framework in kernel.functions:
        _check_framework(name, op, framework)
    try:
        kernel_function.left_out(kernel, op)
    except PluginError as error:
        raise PluginError(f"{name}: {error}") from error
    _check_subjects(name, op, kernel)


def _check_framework(name: str, op: str, framework: str) -> None:
    if framework not in frameworks.NAMES:
        raise PluginError(f"{name}: {op}: no framework is called {framework!r}; {', '.join(frameworks.NAMES)}")


def _check_subjects(name: str, op: str, kernel: Kernel) -> None:
    """A predicate on an axis or argument that the op does not have would raise in the middle of a call."""
    spec = load_spec(op)
    known = {"device_type", "framework", "traced", *spec.parameters.parameters}
    known |= {axis for declared in spec.inputs for axis in declared.shape.replace("|", " ").split()}
    known |= {"world_size"} if "group" in spec.parameters.parameters else set()
    pending = [*kernel.when, *(predicate for predicate, _ in kernel.notes)]
    while pending:
        predicate = pending.pop()
        pending += predicate.children()
        for subject in predicate.subjects():
            if subject.partition(".")[0] not in known:
                raise PluginError(f"{name}: {op}: {predicate}: the op has no {subject!r}; {', '.join(sorted(known))}")


def loaded() -> Iterator[Backend]:
    return (plugin.backend for plugin in plugins() if plugin.backend is not None)


@cache
def unavailable(offered: Backend | Kernel) -> str | None:
    """A backend's or a kernel's own reason why it cannot run, asked once."""
    try:
        return offered.available()
    except Exception as error:  # a broken plugin is an unavailable one
        return f"{type(error).__name__}: {error}"


def stand_in(device_type: str) -> str | None:
    """The word of a device that something else stands in for here; None for the device itself."""
    words = (_word(backend) for backend in loaded() if device_type in backend.device_types)
    return next(filter(None, words), None)


def _word(backend: Backend) -> str | None:
    try:
        return backend.stand_in()
    except Exception:
        return "unknown"  # no call depends on it


def require_name(name: str, source: str) -> None:
    names = [plugin.name for plugin in plugins()]
    if name not in names:
        raise SettingError(f"{source}: no backend is called {name!r}; {nearest(name, names)}")


def require_device(call: Call) -> None:
    """A question about a device that exists nowhere is a slip of the pen."""
    kind, colon, index = call.device.partition(":")
    if call.elsewhere and kind not in (known := device_types()) and kind not in custom_device.present():
        rule = f"{', '.join(known)}, or one of these with an index"
        raise argument_error(call.spec.name, "device", rule, repr(call.device))
    if colon and not index.isdecimal():
        raise argument_error(call.spec.name, "device", f"{kind} or {kind}:0, {kind}:1, ...", repr(call.device))


def device_types() -> list[str]:
    """The devices that the installed backends name."""
    named = {device_type for backend in loaded() for device_type in backend.device_types}
    return sorted(named - {ANY_DEVICE})


def require_unique() -> None:
    for plugin in plugins():
        if plugin.duplicate:
            raise PluginError(str(plugin.problem))


def backends() -> tuple[BackendStatus, ...]:
    """What is installed: each backend's name, whether it is available or why not, its devices and ops."""
    return tuple(_status(plugin) for plugin in plugins())


def _status(plugin: Plugin) -> BackendStatus:
    backend = plugin.backend
    if backend is None:
        return BackendStatus(plugin.name, False, str(plugin.problem), (), (), plugin.distribution)
    reason = unavailable(backend)
    ops = tuple(op for op in OP_NAMES if op in backend.kernels)
    return BackendStatus(
        plugin.name,
        reason is None,
        reason or "",
        backend.device_types,
        ops,
        plugin.distribution,
        backend.proven_on,
    )
