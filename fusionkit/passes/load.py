"""Loads static programs that hold neutral ops: for the host, or rewritten for a device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fusionkit import kernel_function, registry
from fusionkit.backend import Backend
from fusionkit.errors import FusionkitError
from fusionkit.passes import host, neutral, reading
from fusionkit.passes.program import NEUTRAL, Operation, Program
from fusionkit.passes.steps import Passes, rewritten


@dataclass(frozen=True)
class Loaded:
    """A program on a device.

    Args:
        run: outputs of inputs, in the order of `input_names`. In-place arguments are written where they are.
        input_names: in order.
        log: a line for each pass of the device's backend: its name and what it matched.
        operations: names of what runs at each call, in order; empty on the host, where Paddle decides.
        refusal: why a call cannot go through the fused program, or None.
        run_singly: the program before all passes, for such calls.
        singly: how many calls went there, by reason.
    """

    run: Callable[[list[Any]], list[Any]]
    input_names: list[str]
    log: list[str] = field(default_factory=list)
    operations: list[str] = field(default_factory=list)
    refusal: Callable[[Sequence[Any]], str | None] = lambda inputs: None
    run_singly: Callable[[list[Any]], list[Any]] | None = None
    singly: Counter[str] = field(default_factory=Counter)

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        reason = self.refusal(inputs)
        if reason is None or self.run_singly is None:
            return self.run(list(inputs))
        self.singly[reason] += 1
        return self.run_singly(list(inputs))


def load(
    path: str | Path, device: str = "cpu", *, without: Sequence[str] = (), num_layers: int | None = None
) -> Loaded:
    """A program that `export` wrote, on a device, after the passes of the device's backend.

    Args:
        path: without suffix.
        device: as Paddle names it, such as "toy:0". Its inputs must be there.
        without: names of passes to leave out; "all" for every one.
        num_layers: layers that the program must have where passes take layers as a whole.

    Raises:
        FileNotFoundError: one of the program's files is missing.
        ValueError: one is truncated or not what its name says; or no pass is called as `without` says.
        FusionkitError: a layer differs from what the passes know, and is named; or nothing there runs an operation,
            such as a product with weights of 8 or 4 bits, or attention over a cache of int8.
        PluginError: no backend that is available offers the neutral ops.
    """
    if device.partition(":")[0] in neutral.backend().device_types:
        return _on_host(path, without, num_layers)
    from fusionkit.passes import running

    program, tensors = reading.read(path, device)
    require_floats(program, device)
    passes = _passes_for(device.partition(":")[0])
    fused, log = rewritten(program, passes, without, num_layers)
    with reading.on(device):
        ready = running.Running(fused, tensors, device, passes.functions, passes.keeps_state)
        singly = running.Running(program, tensors, device, {}) if fused.guards else None
    return Loaded(ready, ready.input_names, log, ready.operations, ready.refusal, singly)


def _on_host(path: str | Path, without: Sequence[str], num_layers: int | None) -> Loaded:
    owner = neutral.load()
    with host.prepared(path, owner, _passes_of([owner]), without, num_layers) as ready:
        predictor = _predictor(path, ready.program, ready.parameters)
    packs = ready.packs
    names = predictor.get_input_names()[len(packs) :]
    return Loaded(lambda inputs: predictor.run([*packs, *inputs]), names, ready.log)


def require_floats(program: Program, device: str) -> None:
    found = [each for each in program.operations if each.name == reading.QUANTIZED]
    if found:
        raise FusionkitError(
            f"passes: weights on {device} must be floats, got codes of 8 or 4 bits in {len(found)} operations, "
            f"first in fk.quantized_linear at {found[0].place}. Export the model with float weights, or load it for cpu"
        )
    if caches := [each for each in program.operations if _holds_int8(program, each)]:
        raise FusionkitError(
            f"passes: key-value caches on {device} must be floats, got int8 in {len(caches)} operations, first in "
            f"{caches[0].name} at {caches[0].place}. Export the model without --cache_dtype, or load it for cpu"
        )


def _holds_int8(program: Program, operation: Operation) -> bool:
    """Of our ops only attention takes int8."""
    given = (program.types[value].dtype for value in operation.inputs if value in program.types)
    return operation.name.startswith(NEUTRAL) and "int8" in given


def _passes_for(device_type: str) -> Passes:
    """Those of the backend that is named after the device, or none."""
    return _passes_of([each for each in registry.loaded() if _is_for(each, device_type)])


def _passes_of(backends: Sequence[Backend]) -> Passes:
    declared = [kernel_function.resolve(each.passes) for each in backends if each.passes is not None]
    passes: Passes = declared[0] if declared else Passes(())  # type: ignore[assignment]
    return passes


def _is_for(backend: Backend, device_type: str) -> bool:
    has_passes = backend.passes is not None and device_type in backend.device_types
    return has_passes and registry.unavailable(backend) is None


def load_neutral_ops() -> None:
    """Register the neutral ops with Paddle: needed before `paddle.jit.load` or `paddle.inference.create_predictor`.

    Raises:
        PluginError: no backend that is available offers them.
    """
    neutral.load()


def create_predictor(path: str | Path) -> Any:
    """A program that `export` wrote, as a `paddle.inference.Predictor` on the host.

    `predictor.run(list of tensors)` copies no input: the neutral ops write their in-place arguments where they are.

    Raises:
        FileNotFoundError: one of the program's files is missing.
        ValueError: one is truncated or not what its name says.
        PluginError: no backend that is available offers the neutral ops.
    """
    with host.prepared(path, neutral.load(), Passes(()), ["all"]) as ready:
        return _predictor(path, ready.program, ready.parameters)


def _predictor(path: str | Path, program: Path, parameters: Path | None) -> Any:
    import paddle.inference

    config = paddle.inference.Config(str(program), str(parameters or ""))
    config.disable_glog_info()
    try:
        return paddle.inference.create_predictor(config)
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path}: the program cannot be loaded: {reason}. Export it again") from error
