"""Compiles recorded launches for a card that need not be there, as Triton would at the first call."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fusionkit_backends.gpu.kernels.launch import Launch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile, make_backend
from triton.runtime.jit import create_function_from_signature


@dataclass(frozen=True)
class Variant:
    """One program that Triton would compile: a kernel with argument types, what is known of them, and options.

    Two launches of one variant share the compiled program; `key` tells variants apart.
    """

    kernel: Any
    key: str
    launch: Launch

    @property
    def name(self) -> str:
        return str(self.kernel.__name__)


def variants(launches: Iterable[Launch], capability: int) -> list[Variant]:
    """The distinct programs behind the launches, in their order."""
    found: dict[str, Variant] = {}
    for each in launches:
        _, specialization, options = _bound(each, capability)
        key = f"{each.kernel.__name__} {specialization} {sorted(options.items())}"
        found.setdefault(key, Variant(each.kernel, key, each))
    return list(found.values())


def compiled(variant: Variant, capability: int) -> Any:
    """Down to the cubin; `.asm["ptx"]` and `.metadata` of the result tell more."""
    bound, specialization, options = _bound(variant.launch, capability)
    target = _target(capability)
    kernel = variant.kernel
    parsed, signature, constants, attributes = kernel._pack_args(
        make_backend(target), options, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return compile(source, target=target, options=parsed.__dict__)


@dataclass(frozen=True)
class Resources:
    """Of one thread: registers, and bytes of local memory for what they do not hold. Of one program: shared bytes."""

    registers: int
    spilled_bytes: int
    shared_bytes: int


def resources(program: Any) -> Resources:
    """As NVIDIA's cuobjdump, which Triton brings, reads them from the cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(program.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return Resources(usage["REG"], usage["STACK"] + usage["LOCAL"], program.metadata.shared)


def _target(capability: int) -> GPUTarget:
    return GPUTarget("cuda", capability, 32)


def _bound(launch: Launch, capability: int) -> Any:
    """By Triton's own binder, whose rules say which arguments are specialised on their value or alignment."""
    kernel = launch.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, make_backend(_target(capability)))
    return binder(*launch.arguments, **launch.constants)
