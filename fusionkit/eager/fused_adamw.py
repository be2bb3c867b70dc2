"""fused_adamw composed of Paddle's own ops."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import paddle

from fusionkit.eager.shapes import require_shape
from fusionkit.ops.fused_adamw import check_scalars

# Elements that are updated at a time: temporaries have this size, not the parameter's. By estimate: reading 16 MB takes
# a device of 1.6 TB/s 10 us, about as long as an op takes to start there.
PART_ELEMENTS = 2**22
VECTOR = 64  # elements; no processor's are longer


@paddle.no_grad()  # type: ignore[untyped-decorator]
def fused_adamw(
    param: Any,
    grad: Any,
    moment1: Any,
    moment2: Any,
    *,
    learning_rate: float,
    beta1_power: float,
    beta2_power: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.01,
    grad_scale: float = 1.0,
) -> Any:
    check_scalars(locals())
    for name, tensor in (("grad", grad), ("moment1", moment1), ("moment2", moment2)):
        require_shape("fused_adamw", name, tensor, param.shape)

    def update(param: Any, grad: Any, moment1: Any, moment2: Any) -> None:
        scaled = grad.astype(paddle.float32) * grad_scale
        first = moment1 * beta1 + scaled * (1 - beta1)
        second = moment2 * beta2 + scaled * (1 - beta2) * scaled  # the square alone may leave float32
        denominator = second.sqrt() * (1 / math.sqrt(1 - beta2_power)) + epsilon
        change = first / denominator * (learning_rate / (1 - beta1_power))
        updated = param * (1 - learning_rate * weight_decay) - change
        for tensor, value in ((param, updated), (moment1, first), (moment2, second)):
            paddle.assign(value, tensor)

    for part in parts((param, grad, moment1, moment2)):
        update(*part)
        if part[0] is not param:  # a part counts its own changes, by which autograd knows them
            for tensor in (param, moment1, moment2):
                tensor._bump_inplace_version()
    return param, moment1, moment2


def parts(tensors: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The same rows of each tensor, in its own memory."""
    shape = tensors[0].shape
    rows = _rows(math.prod(shape[1:]))
    if not shape or shape[0] <= rows or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    for start in range(0, shape[0], rows):
        yield [tensor._slice(start, min(start + rows, shape[0])) for tensor in tensors]


def _rows(elements: int) -> int:
    """Of a part, by the elements of a row. Each part begins with a whole vector, so that all bits are those of an
    update of the whole: on CPUs Paddle's square root rounds a vector's elements otherwise than the last few."""
    whole = VECTOR // math.gcd(VECTOR, elements)
    return max(whole, PART_ELEMENTS // max(1, elements) // whole * whole)
