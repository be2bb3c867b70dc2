"""The backend interface, version 1: what an entry point of the group "fusionkit.backends" loads.

A backend is data plus functions named by string. Reading it imports no vendor package: the module of a kernel is
imported when the kernel is first chosen, and asks for the vendor's package there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from fusionkit import rehearsal
from fusionkit.capability import Predicate
from fusionkit.dtypes import FLOATING

INTERFACE_VERSION = 1
ANY_DEVICE = "*"

Proof = Literal["hardware", "emulator", "none", "not stated"]
PROOF_IN_WORDS: Mapping[Proof, str] = {
    "hardware": "",
    "emulator": "emulated",
    "none": "not run",
    "not stated": "proof not stated",
}

# Allowed values by name; () for any.
CORE_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "FUSIONKIT_BACKEND": (),
    "FUSIONKIT_STRICT": ("0", "1"),
    "FUSIONKIT_MC2": ("0", "1"),
    rehearsal.VARIABLE: ("0", "1"),
    "FUSIONKIT_CONFIG": (),
}


def _nothing() -> str | None:
    return None


@dataclass(frozen=True, eq=False)
class Kernel:
    """One backend's function for one op.

    Args:
        functions: framework -> "module:function" with the op's own signature. Parameters with a default may be left
            out, alike in all functions and in `vjp`: a call must then have that default, or the kernel refuses it. A
            framework that is missing is served through Paddle when "paddle" is there: arrays are carried over and back,
            and `explain` says so.
        vjp: "module:function" over NumPy arrays: `(grad_outputs, **arguments) -> {input: gradient}`. Without it the
            gradients through NumPy come from the framework's own autograd.
        pack: "module:function" of `fused_linear` kernels that lay out weights: `(array, dtype, device) -> payload`.
        pack_quantized: as `pack`, of weights in 8 or 4 bits: `(QuantizedWeight, device) -> payload`, which has
            `num_bytes`.
        pack_rounding: as `pack_quantized`, of weights whose `activations` are "int8": products with such a pack round x
            first, as `fusionkit.rounded_activations` says to the bit.
        differentiates_quantized: functions and `vjp` give the gradients of the other inputs through such a pack. It has
            none itself. Without this, a call that wants gradients is refused.
        dtypes: of the first input.
        when: predicates that must all hold.
        directions: ("forward",) marks a kernel without gradient.
        checks_sizes: the kernel refuses every size that its op's spec refuses, with a ValueError. Then a remembered
            decision runs it at once; else the core holds each call against the spec first, about 50 us.
        batch_invariant: it keeps the promise of `fusionkit.use_batch_invariant()`. A test must hold it to that.
        notes: (predicate, text): what a caller should know when the predicate holds, such as a copy.
        available: None, or the reason why this kernel alone cannot run here, such as an op that an older plugin lacks.
        for_framework: framework -> the kernel that serves its tensors instead of this one, with conditions of its own.
    """

    functions: Mapping[str, str]
    dtypes: tuple[str, ...] = FLOATING
    when: tuple[Predicate, ...] = ()
    directions: tuple[str, ...] = ("forward", "backward")
    vjp: str | None = None
    pack: str | None = None
    pack_quantized: str | None = None
    pack_rounding: str | None = None
    differentiates_quantized: bool = False
    checks_sizes: bool = False
    batch_invariant: bool = False
    notes: tuple[tuple[Predicate, str], ...] = ()
    available: Callable[[], str | None] = _nothing
    for_framework: Mapping[str, Kernel] = field(default_factory=dict)

    def serving(self, framework: str | None) -> Kernel:
        """The kernel that a framework's tensors get."""
        return self.for_framework.get(framework, self) if framework else self


@dataclass(frozen=True)
class Check:
    """One line of `fusionkit doctor`: what was looked at, whether it is well, and the command that mends it."""

    name: str
    passed: bool
    found: str
    fix: str = ""


@dataclass(frozen=True)
class DeviceModel:
    """A device's rates, for plans and for model FLOPs utilisation.

    Args:
        flops: dtype -> FLOP/s of a dense matrix product.
        memory_bytes, memory_bandwidth: of the device's own memory, in bytes and bytes/s.
        link_bandwidth: bytes/s in one direction: of all of a device's links together where a switch joins the devices,
            of the link to one peer in a mesh.
        link_topology: "switch": any number of peers share link_bandwidth. "mesh": each peer has a link of its own.
        source: the data sheet, or whatever else the figures are.
    """

    name: str
    flops: Mapping[str, float]
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str
    link_topology: Literal["switch", "mesh"] = "switch"


def _no_checks() -> Sequence[Check]:
    return ()


@dataclass(frozen=True, eq=False)
class Backend:
    """A device family's plugin.

    Args:
        name: lower case: "toy". Users write it in `use_backend`. A device's own backend carries the device's name.
        device_types: whose tensors it takes, as the framework names them; ("*",) for all.
        kernels: op name -> kernel. An op that is missing is an op that the vendor does not have.
        gaps: op name -> why the device does not have it, where there is more to say.
        proven_on: where its results were last proven: "hardware", "emulator", or "none" while nobody ran it. Every
            table and explanation shows all but the first, and that a backend does not say.
        available: None, or the reason why it cannot run here.
        stand_in: None, or the word for what stands in for the device here, such as "emulated". Every text that names
            the device then says it.
        doctor: the backend's own checks.
        settings: environment variables FUSIONKIT_<NAME>_* that it reads, each with its allowed values; () for any.
        environment_aliases: a vendor's variable -> the name that it stands for: one of `settings` or `CORE_SETTINGS`.
        device_models: by name.
        benchmark: "module" with what `fusionkit bench` needs of the device.
            `stream(bytes_read, bytes_written)` gives the variants of a call that moves so much.
            `product(op, dims, dtype)` gives a product at the device's best rate, and its FLOPs.
            `prepared(op, arguments, training, cost)` gives the kernel into memory made before.
            `TARGETS` are the ratios that the backend promises.
        neutral_ops: "module:function" that registers the custom ops `fusionkit_<op>` with Paddle. For the backend whose
            Paddle functions record these, and nothing else, in a static program.
        passes: "module:name" of a `fusionkit.passes.steps.Passes`: what becomes of a program that is loaded for the
            device.
    """

    name: str
    device_types: tuple[str, ...]
    kernels: Mapping[str, Kernel]
    gaps: Mapping[str, str] = field(default_factory=dict)
    proven_on: Proof = "not stated"
    interface_version: int = INTERFACE_VERSION
    available: Callable[[], str | None] = _nothing
    stand_in: Callable[[], str | None] = _nothing
    doctor: Callable[[], Sequence[Check]] = _no_checks
    settings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    environment_aliases: Mapping[str, str] = field(default_factory=dict)
    device_models: Mapping[str, DeviceModel] = field(default_factory=dict)
    benchmark: str | None = None
    neutral_ops: str | None = None
    passes: str | None = None

    def owns(self, device_type: str) -> bool:
        return ANY_DEVICE in self.device_types or device_type in self.device_types
