"""Chooses the backend for one call: a pure function of the call, the policy and what the backends declare.

Fallback happens here, by verdicts, and never by catching a kernel's exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from fusionkit import kernel_function, policy, registry, settings
from fusionkit.backend import ANY_DEVICE, PROOF_IN_WORDS, Backend, Kernel
from fusionkit.call import Call
from fusionkit.capability import ForwardOnly, LeftOut, OneOf, Predicate, Verdict, all_of
from fusionkit.dtypes import QUANTIZED
from fusionkit.errors import NoBackendError
from fusionkit.ops import load_spec
from fusionkit.spec import HELD_AS_ARRAYS, ROUNDING_ARRAYS

CHOSEN = "chosen"
Packing = Literal["pack", "pack_quantized", "pack_rounding"]  # the field of `Kernel` that a weight is packed by
_PACKS_NONE: Mapping[Packing, str] = {
    "pack": "packs no weights",
    "pack_quantized": "packs no int8 or int4 weights",
    "pack_rounding": "packs no weights whose products round x to int8",
}
_AS_ARRAYS = (HELD_AS_ARRAYS, ROUNDING_ARRAYS)


@dataclass(frozen=True)
class Candidate:
    """One backend's verdict on one call."""

    backend: str
    verdict: Verdict
    kernel: Kernel | None
    offered: bool  # the backend has the op for the framework's tensors: going past it is then a fallback
    remarks: tuple[str, ...] = ()  # what to know of the backend although it says yes


def wanted_names(op: str, device_type: str) -> tuple[tuple[str, ...], str | None]:
    """(backend names in order, source of an explicit wish or None for the platform's order)."""
    for level in (policy.current(), policy.of_settings()):
        if level is not None and (wish := level.wanted(op)) is not None:
            return wish
    return _platform_order(device_type), None


def _platform_order(device_type: str) -> tuple[str, ...]:
    """The device's own backend, then others that name the device, then those for any; alphabetically within each."""
    places = {plugin.name: _place(plugin, device_type) for plugin in registry.plugins()}
    names = (name for name, place in places.items() if place is not None)
    return tuple(sorted(names, key=lambda name: (places[name], name)))


OWN, NAMED_FOR_ANOTHER, BESIDE, FOR_ANY = range(4)


def _place(plugin: registry.Plugin, device_type: str) -> int | None:
    """A backend is a device's own by its name, so that one which is installed later does not take over in silence. A
    plugin that did not load counts as one that takes the device: what it would have taken is not known."""
    if plugin.backend is not None and not plugin.backend.owns(device_type):
        return None
    if plugin.name == device_type:
        return OWN
    if plugin.backend is None:
        return BESIDE
    if ANY_DEVICE in plugin.backend.device_types:
        return FOR_ANY
    return NAMED_FOR_ANOTHER if plugin.name in plugin.backend.device_types else BESIDE


def judge(plugin: registry.Plugin, call: Call, packing: Packing | None = None) -> Candidate:
    """A plugin's verdict on a call, with the first kind of reason that decides it. `packing`: it must also be able to
    pack the call's weight so."""
    backend = plugin.backend
    if backend is None:
        return Candidate(plugin.name, Verdict("no", (f"not available: {plugin.problem}",)), None, True)
    if not backend.owns(call.device_type):
        return Candidate(plugin.name, Verdict("no", (f"tensors are on {shown_device(call)}",)), None, True)
    kernel = backend.kernels.get(call.spec.name)
    if kernel is None:
        return Candidate(plugin.name, Verdict("no", (_gap(backend, call.spec.name),)), None, False)
    kernel = kernel.serving(call.framework)
    missing = _missing(backend, kernel)
    offered = bool(_judge_framework(kernel, call))
    if missing is not None and not call.elsewhere:
        return Candidate(plugin.name, Verdict("no", (f"not available: {missing}",)), kernel, offered)
    proof = PROOF_IN_WORDS[backend.proven_on]
    remarks = tuple(filter(None, (proof, missing and f"not on this machine: {missing}")))
    verdict = judge_kernel(kernel, call)
    if packing is not None and getattr(kernel, packing) is None:
        verdict = Verdict("no", (*(verdict.reasons if verdict.answer == "no" else ()), _PACKS_NONE[packing]))
    return Candidate(plugin.name, verdict, kernel, offered, remarks)


def _gap(backend: Backend, op: str) -> str:
    more = backend.gaps.get(op)
    return f"{backend.name} does not have {op}" + (f": {more}" if more else "")


def _missing(backend: Backend, kernel: Kernel) -> str | None:
    """Why the kernel cannot run on this machine."""
    return registry.unavailable(backend) or registry.unavailable(kernel)


def judge_kernel(kernel: Kernel, call: Call) -> Verdict:
    """The kernel's declaration against the call."""
    declared = (predicate.judge(call) for predicate in conditions(kernel, call.spec.name))
    return all_of([_judge_framework(kernel, call), _judge_packing(kernel, call), _judge_batch(kernel), *declared])


def notes(candidate: Candidate, call: Call) -> tuple[str, ...]:
    """What a caller should know although the call runs. For `explain` only: no decision depends on it."""
    kernel = candidate.kernel
    if kernel is None or not candidate.verdict:
        return ()
    said = tuple(text for predicate, text in kernel.notes if predicate.judge(call))
    carried = call.framework is not None and call.framework not in kernel.functions
    return (
        *candidate.remarks,
        *_order(candidate, call),
        *said,
        *((f"{call.framework} arrays are carried to paddle and back",) if carried else ()),
        *(("batch invariant",) if policy.batch_invariant() else ()),
    )


def _order(candidate: Candidate, call: Call) -> tuple[str, ...]:
    """Why a backend that names the device, and could run the call, does not come first."""
    names, source = wanted_names(call.spec.name, call.device_type)
    by_name = {plugin.name: _place(plugin, call.device_type) for plugin in registry.plugins()}
    first = by_name[names[0]] if source is None else None
    if by_name[candidate.backend] != BESIDE or first is None or first >= BESIDE:
        return ()
    return (f'tried after {names[0]}, the device\'s own; fusionkit.use_backend("{candidate.backend}") prefers it',)


@cache
def conditions(kernel: Kernel, op: str) -> tuple[Predicate, ...]:
    """Everything that a kernel declares, as predicates: for verdicts, tables and boundary tests."""
    spec = load_spec(op)
    implied: list[Predicate] = [OneOf(f"{spec.inputs[0].name}.dtype", kernel.dtypes)]
    if "backward" not in kernel.directions:
        implied.append(ForwardOnly())
    absent = kernel_function.left_out(kernel, op)
    implied += [LeftOut(name, spec.parameters.parameters[name].default) for name in absent]
    return (*implied, *kernel.when)


def _judge_framework(kernel: Kernel, call: Call) -> Verdict:
    served = call.framework is None or call.framework in kernel.functions
    if served or (call.framework == "numpy" and "paddle" in kernel.functions):
        return Verdict("yes")
    return Verdict("no", (f"takes {' and '.join(kernel.functions)} tensors, got {call.framework}",))


def _judge_batch(kernel: Kernel) -> Verdict:
    """Decisions are remembered for each policy, of which the wish is a part."""
    if policy.batch_invariant() and not kernel.batch_invariant:
        return Verdict(
            "no", ("use_batch_invariant: it does not promise that a row's bits are the same in every batch",)
        )
    return Verdict("yes")


def _judge_packing(kernel: Kernel, call: Call) -> Verdict:
    for name, tensor in call.tensors.items():
        passes = kernel.differentiates_quantized and tensor.dtype in QUANTIZED and tensor.packed_by not in _AS_ARRAYS
        if tensor.packed_by is not None and not passes and call.training:
            return Verdict("no", (f"{name} is packed, for inference only, and gradients are wanted",))
    return Verdict("yes")


def select(call: Call, packing: Packing | None = None) -> tuple[Candidate, str]:
    """The backend that runs the call, or packs its weight, and the ledger's reason.

    Raises:
        NoBackendError: none can, or a strict wish cannot be fulfilled; the text lists every candidate.
        PluginError: two distributions offer one name.
    """
    registry.require_unique()
    names, source = wanted_names(call.spec.name, call.device_type)
    strict = source is None and settings.current().strict
    by_name = {plugin.name: plugin for plugin in registry.plugins()}
    skipped: list[Candidate] = []
    for name in names:
        candidate = judge(by_name[name], call, packing)
        if candidate.verdict or (candidate.verdict.answer == "unknown" and source is not None):
            if strict and any(c.offered for c in skipped):
                break
            return candidate, _reason(skipped)
        skipped.append(candidate)
    raise NoBackendError(_refusal(call, names, source, packing))


def _reason(skipped: list[Candidate]) -> str:
    if not skipped:
        return CHOSEN
    kind = "fallback" if any(c.offered for c in skipped) else "not offered"
    return f"{kind}: " + "; ".join(f"{c.backend}: {', '.join(c.verdict.reasons)}" for c in skipped)


def _refusal(call: Call, names: tuple[str, ...], source: str | None, packing: Packing | None) -> str:
    """The error of a refused call: every candidate with its reasons, and a way out."""
    asked = "pack_weight" if packing else call.spec.name
    head = f"{asked}: no backend {'packs this weight' if packing else 'accepts this call'} ({in_words(call)})"
    if source is not None:
        does = "does not pack this weight" if packing else "does not accept this call"
        head = f"{asked}: {' and '.join(names)} ({source}) {does} ({in_words(call)})"
    elif settings.current().strict:
        head += "; FUSIONKIT_STRICT=1 forbids a fallback"
    candidates = {plugin.name: judge(plugin, call, packing) for plugin in registry.plugins()}
    lines = [f"  {name}: {', '.join(c.verdict.reasons) or c.verdict.answer}" for name, c in candidates.items()]
    willing = [name for name in _platform_order(call.device_type) if candidates[name].verdict]
    advice = [f'Use fusionkit.use_backend("{willing[0]}") to run there.'] if willing else []
    if packing:
        advice.append("Pass the weight itself to fused_linear to run without a pack.")
    return "\n".join([head, *lines, *advice])


def in_words(call: Call) -> str:
    shown = [*(f"{name} {tensor}" for name, tensor in call.tensors.items()), *_values(call)]
    where = f"device {shown_device(call)}"
    if call.values.get("group") is not None:
        where += f", world_size {call.dims['world_size']}"
    return f"{where}, {'training' if call.wants_gradient else 'inference'}, {', '.join(shown)}"


def _values(call: Call) -> list[str]:
    """The arguments that are no tensors and differ from their defaults; a group is shown by its size."""
    parameters = call.spec.parameters.parameters
    defaults = {name: repr(parameters[name].default) for name in call.values if name != "group"}
    given = {name: repr(call.values[name]) for name in defaults}
    return [f"{name}={value:.60}" for name, value in given.items() if value != defaults[name]]


def shown_device(call: Call) -> str:
    """What stands in for a device here is never shown as the device itself."""
    word = registry.stand_in(call.device_type)
    return f"{call.device} ({word})" if word else call.device
