"""Traces a layer into a static program of device-neutral ops."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paddle

from fusionkit.errors import FusionkitError
from fusionkit.passes import files, neutral
from fusionkit.policy import use_backend

CUSTOM_OP = "custom_op."  # Paddle's name of a custom op in a program: "custom_op.fusionkit_swiglu"


def export(layer: Any, path: str | Path, input_spec: Sequence[Any]) -> None:
    """Write `path.json`, the program, `path.pdiparams`, its parameters, and `path.sizes`, sizes and checksums of both.

    The program is traced for inference on the host, whatever device is in use, so that each op is the neutral one.

    Args:
        layer: a `paddle.nn.Layer`; what its `forward` returns is the program's output.
        path: without suffix; its folder exists.
        input_spec: a `paddle.static.InputSpec` for each argument of `forward`, or a list of them; -1 is any size.

    Raises:
        NoBackendError: a call has no neutral op that takes it.
        FusionkitError: the layer itself calls a custom op that only some device has.
        OSError: the disk did not take a file whole; what was at `path` before is still there.
    """
    owner = neutral.load()
    layer.eval()
    with _on_host(), use_backend(owner.name), paddle.no_grad():
        traced = paddle.jit.to_static(layer, input_spec=list(input_spec), full_graph=True)
        _require_neutral(traced.forward.concrete_program.main_program)
        with files.replacing(path) as written:
            paddle.jit.save(traced, str(written))
            files.seal(written, traced.forward.concrete_program.parameters[0])


@contextmanager
def _on_host() -> Iterator[None]:
    device = paddle.get_device()
    paddle.set_device("cpu")
    try:
        yield
    finally:
        paddle.set_device(device)


def _require_neutral(program: Any) -> None:
    names = {op.name() for block in program.blocks for op in block.ops}
    custom = {name.removeprefix(CUSTOM_OP) for name in names if name.startswith(CUSTOM_OP)}
    if foreign := sorted(name for name in custom if not name.startswith(neutral.PREFIX)):
        raise FusionkitError(
            f"export: the program must hold only neutral ops {neutral.PREFIX}*, got {', '.join(foreign)}; they run on "
            "one kind of device. Call fusionkit's op instead"
        )
