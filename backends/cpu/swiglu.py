"""swiglu on the CPU."""

from __future__ import annotations

from typing import Any

from fusionkit_backends.cpu import paddle_ops, runtime


def through_paddle(gate: Any, up: Any) -> Any:
    gate, up = paddle_ops.inputs(gate, up)
    (y,) = paddle_ops.run("fusionkit_swiglu", gate, up)
    return y


def through_numpy(gate: Any, up: Any) -> Any:
    return runtime.native().swiglu(gate, up)


def vjp(grad_outputs: Any, gate: Any, up: Any) -> dict[str, Any]:
    dgate, dup = runtime.native().swiglu_grad(gate, up, grad_outputs)
    return {"gate": dgate, "up": dup}
