"""A saved program and its parameters, as data that passes can rewrite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fusionkit.ops import OP_NAMES
from fusionkit.passes import files, neutral
from fusionkit.passes.program import NEUTRAL, Operation, Program, Type

# The last is a promise of whoever runs the neutral ops; a device for which programs are rewritten makes none.
_NO_MEANING = ("stop_gradient", "struct_name", "op_callstack", "weight_grad", "x_grad", "place", "batch_invariant")
QUANTIZED = "custom_op.fusionkit_quantized_linear"  # a product with weights of 8 or 4 bits, as a program holds it
CONSTANTS = ("full", "full_int_array")


def read(path: str | Path, device: str) -> tuple[Program, dict[int, Any]]:
    """A program that `export` wrote, and its parameters on the device: value -> tensor.

    Raises:
        FileNotFoundError, ValueError: a file is missing, truncated or damaged.
    """
    files.read_whole(path)
    neutral.load()
    import paddle

    with on(device):
        try:
            layer = paddle.jit.load(str(path))
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{path}: the program cannot be loaded: {reason}. Export it again") from error
    program = _Reader().read(layer.program())
    tensors = {tensor.name: tensor for tensor in layer.parameters()}
    return program, {value: tensors[name] for value, name in program.parameters.items()}


@contextmanager
def on(device: str) -> Iterator[None]:
    """Paddle makes new tensors on this device inside of the block."""
    import paddle

    before = paddle.get_device()
    paddle.set_device(device)
    try:
        yield
    finally:
        paddle.set_device(before)


class _Reader:
    """Gives Paddle's values numbers."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self.program = Program([], {}, {}, {}, [], {})

    def read(self, program: Any) -> Program:
        operations: list[Operation] = []
        for operation in program.global_block().ops:
            self._take(operation, operations)
        self.program.set_operations(operations)
        return self.program

    def _number(self, value: Any) -> int:
        number = self._numbers.setdefault(value.id, len(self._numbers))
        if number not in self.program.types and value.is_dense_tensor_type():
            dtype = str(value.dtype).removeprefix("paddle.")
            self.program.types[number] = Type(dtype, tuple(value.shape))
        return number

    def _take(self, operation: Any, operations: list[Operation]) -> None:
        name = operation.name().rpartition(".")[2]
        attributes = {key: value for key, value in operation.attrs().items() if key not in _NO_MEANING}
        inputs = tuple(self._number(value) if _is_there(value) else None for value in operation.operands_source())
        outputs = tuple(self._number(value) for value in operation.results())
        if name == "parameter":
            self.program.parameters[outputs[0]] = attributes["parameter_name"]
        elif name == "data":
            self.program.inputs[attributes["name"]] = outputs[0]
        elif name == "shadow_output":
            self.program.outputs += [value for value in inputs if value is not None]
        elif name in CONSTANTS:
            self.program.constants[outputs[0]] = attributes["value"]
        elif operation.name() == "builtin.split":
            _give_parts(operations, inputs[0], outputs)
        else:
            place = operation.attrs().get("struct_name", "")
            operations.append(Operation(_name(operation.name()), inputs, outputs, _plain(attributes), place))


def _is_there(value: Any) -> bool:
    return value is not None and value.initialized()


def _give_parts(operations: list[Operation], whole: int | None, parts: tuple[int, ...]) -> None:
    """Paddle splits in two operations: one gives a list, the other its elements."""
    at = next(number for number, each in enumerate(operations) if whole in each.outputs)
    old = operations[at]
    operations[at] = Operation(old.name, old.inputs, parts, old.attributes, old.place)


def _name(name: str) -> str:
    dialect, _, plain = name.partition(".")
    return of_custom_op(plain) if dialect == "custom_op" else plain


def of_custom_op(name: str) -> str:
    """What an operation is called whose custom op this is: `fk.<op>` of a neutral one."""
    op = name.removeprefix(neutral.PREFIX)
    known = [each for each in OP_NAMES if op == each or op.startswith(f"{each}_")]
    return NEUTRAL + max(known, key=len) if known else f"custom_op.{name}"


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    """With words for dtypes."""
    return {name: value.name.lower() if name == "dtype" else value for name, value in attributes.items()}
