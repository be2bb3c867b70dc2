"""The callables that a worker times for one subject: a dictionary (contestant, direction) -> call."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fusionkit_bench.subject import FORWARD, TRAINING, Subject

from fusionkit import frameworks, pack_weight, registry, use_backend
from fusionkit.spec import Cost

Call = Callable[[], object]
Contestants = dict[tuple[str, str], Call]

STREAM, PRODUCT, PEAK, KERNEL, OP = "stream", "product", "peak", "kernel", "op"
OP_AS_IT_COMES = "op, as it comes"
COMPOSITION = "paddle"
TUNED = " (tuned)"


@dataclass(frozen=True)
class Scaled:
    """A call whose seconds count `factor` times: a product of another size stands for as many FLOPs as the op's."""

    call: Call
    factor: float

    def __call__(self) -> object:
        return self.call()


# Below this share of the other ceiling's estimated time, a ceiling cannot be the floor and is not run.
NEGLIGIBLE = 0.25
BANDWIDTH_GUESS, RATE_GUESS = 50e9, 400e9

COMPOSITION_LIMIT = 4e9  # bytes; two such processes run side by side, and a machine of 24 GB is to stay within 16


def tuned(backend_name: str, subject: Subject, made: dict[str, Any]) -> Contestants:
    """As `alone`, and the composition of Paddle's own functions."""
    return alone(backend_name, subject, made) | compositions(COMPOSITION + TUNED, subject, made)


def alone(backend_name: str, subject: Subject, made: dict[str, Any]) -> Contestants:
    """The backend's ceilings, its kernel and the public op."""
    dims = subject.dims(made)
    device = device_of(backend_name)
    found: Contestants = {}
    for direction in subject.directions:
        cost = subject.cost(dims, direction)
        found |= {(name, direction): call for name, call in ceilings(device, subject, dims, cost).items()}
        arguments = packed(subject, made, backend_name)
        found[KERNEL, direction] = device.prepared(subject.op_name, arguments, direction == TRAINING, cost)
        found[OP, direction] = public(subject, arguments, backend_name, direction)
    return found


def stock(backend_name: str, subject: Subject, made: dict[str, Any]) -> Contestants:
    """The public op, and the composition of Paddle's own functions, in a process as it comes."""
    return as_it_comes(backend_name, subject, made) | compositions(COMPOSITION, subject, made)


def as_it_comes(backend_name: str, subject: Subject, made: dict[str, Any]) -> Contestants:
    """The public op alone."""
    arguments = packed(subject, made, backend_name)
    return {(OP_AS_IT_COMES, way): public(subject, arguments, backend_name, way) for way in subject.directions}


def compositions(name: str, subject: Subject, made: dict[str, Any]) -> Contestants:
    if subject.benchmark.composition_bytes > COMPOSITION_LIMIT:
        return {}
    return {(name, direction): composed(subject, made, direction) for direction in subject.directions}


def device_of(backend_name: str) -> Any:
    """What the backend brings for benchmarks; see `Backend.benchmark`."""
    backend = next(backend for backend in registry.loaded() if backend.name == backend_name)
    if backend.benchmark is None:
        raise ValueError(f"bench: {backend_name} declares no benchmark, so it has no ceiling to be held against")
    return importlib.import_module(backend.benchmark)


def libraries(backend_name: str, subject: Subject, made: dict[str, Any]) -> Contestants:
    """Products of the libraries whose threads would fight Paddle's for the cores."""
    dims, device = subject.dims(made), device_of(backend_name)
    return {
        (name, direction): call
        for direction in subject.directions
        for name, call in products(device, subject, dims, subject.cost(dims, direction), apart=True).items()
    }


def ceilings(device: Any, subject: Subject, dims: dict[str, Any], cost: Cost) -> dict[str, Call]:
    found: dict[str, Call] = {}
    if memory_s(cost) > NEGLIGIBLE * arithmetic_s(cost):
        variants = device.stream(int(cost.bytes_read), int(cost.bytes_written))
        found |= {STREAM + variant: call for variant, call in variants.items()}
    found |= products(device, subject, dims, cost, apart=False)
    if arithmetic_bounds(cost):
        for name, (call, flops) in device.peaks(subject.dtype).items():
            found[f"{PEAK}, {name}"] = Scaled(call, cost.flops / flops)
    return found


def products(device: Any, subject: Subject, dims: dict[str, Any], cost: Cost, apart: bool) -> dict[str, Call]:
    if not arithmetic_bounds(cost):
        return {}
    calls, flops = device.products(subject.op_name, dims, subject.dtype, apart=apart)
    return {f"{PRODUCT}, {name}": Scaled(call, cost.flops / flops) for name, call in calls.items()}


def arithmetic_bounds(cost: Cost) -> bool:
    """Perhaps."""
    return arithmetic_s(cost) > NEGLIGIBLE * memory_s(cost)


def memory_s(cost: Cost) -> float:
    return (cost.bytes_read + cost.bytes_written) / BANDWIDTH_GUESS


def arithmetic_s(cost: Cost) -> float:
    return cost.flops / RATE_GUESS


def packed(subject: Subject, made: dict[str, Any], backend_name: str) -> dict[str, Any]:
    name = subject.benchmark.packed
    if name is None:
        return made
    how = subject.benchmark.case.quantized or {"dtype": subject.dtype}
    with use_backend(backend_name):
        return {**made, name: pack_weight(made[name], **how)}


def public(subject: Subject, arguments: dict[str, Any], backend_name: str, direction: str) -> Call:
    """The op as users call it, dispatch included."""
    tensors = on_paddle(arguments)
    chosen = subject.op.explain(**tensors, training=direction == TRAINING).chosen
    if chosen != backend_name:
        asked = f"{subject.op_name} would run on {chosen}, not on {backend_name}"
        raise ValueError(f"bench: {asked}. Unset FUSIONKIT_BACKEND, or give --backend {chosen}")
    return call_of(subject, subject.op, tensors, direction)


def composed(subject: Subject, made: dict[str, Any], direction: str) -> Call:
    """Without dispatch, to its advantage."""
    tensors = on_paddle(made)
    marked(subject, tensors, direction)
    with use_backend("eager"):
        return call_of(subject, subject.op.bind(**tensors), tensors, direction)


def on_paddle(arguments: dict[str, Any]) -> dict[str, Any]:
    paddle = frameworks.load("paddle")
    return {name: paddle.over_tensors(value, "cpu") for name, value in arguments.items()}  # type: ignore[attr-defined]


def marked(subject: Subject, tensors: dict[str, Any], direction: str) -> list[Any]:
    """The inputs whose gradients are wanted, marked so."""
    wanted = [tensors[i.name] for i in subject.op.spec.inputs if i.differentiable and tensors.get(i.name) is not None]
    if direction == TRAINING:
        for tensor in wanted:
            tensor.stop_gradient = False
    return wanted


def call_of(subject: Subject, function: Callable[..., Any], tensors: dict[str, Any], direction: str) -> Call:
    import paddle

    if direction == FORWARD:

        def forward() -> object:
            with paddle.no_grad():
                return function(**tensors)

        return forward
    wanted = marked(subject, tensors, direction)
    grads = [paddle.ones(o.shape, "float32").astype(o.dtype) for o in differentiable(function(**tensors))]

    class Downstream(paddle.autograd.PyLayer):  # type: ignore[misc]
        """Hands over gradients made before, as the next layer would: `paddle.grad` copies those that it is given."""

        @staticmethod
        def forward(ctx: Any, *outputs: Any) -> Any:
            return paddle.zeros([])

        @staticmethod
        def backward(ctx: Any, dloss: Any) -> Any:
            return tuple(grads) if len(grads) > 1 else grads[0]

    def both() -> object:
        return paddle.grad(Downstream.apply(*differentiable(function(**tensors))), wanted)

    return both


def differentiable(outputs: Any) -> list[Any]:
    return [output for output in listed(outputs) if not output.stop_gradient]


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]
