"""The few questions that the core asks of a tensor, one module a framework, imported when its first tensor arrives."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from fusionkit.errors import FusionkitError
from fusionkit.spec import OpSpec, TensorSpec

NAMES = ("paddle", "numpy", "torch")


class Framework(Protocol):
    """What a module `fusionkit.frameworks.<name>` offers; the last three only where `autocast` may be on or
    arrays are carried: not NumPy's."""

    NAME: str

    def owns(self, kind: type) -> bool:
        """Whether values of this type are tensors of the framework."""

    def describe(self, tensor: Any) -> TensorSpec:
        """Shape (-1 where unknown), dtype, device, and whether it is contiguous."""

    def current_device(self) -> str:
        """Where a tensor without a device would live."""

    def wants_gradient(self, tensors: list[Any]) -> bool:
        """Whether gradients are enabled and one of the tensors requires one."""

    def is_symbolic(self, tensor: Any) -> bool:
        """Whether the tensor is a value of a graph being traced."""

    def to_numpy(self, tensor: Any) -> Any:
        """The tensor's values as an array."""

    def place_of(self, tensor: Any) -> object | None:
        """A cheap object that compares equal on one device; None where all tensors live on one."""

    def autocast(self) -> object | None:
        """The automatic mixed precision that is on, or None; cheap."""

    def cast_for(self, state: Any, spec: OpSpec, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors as automatic mixed precision wants them for this op."""

    def without_autocast(self) -> Any:
        """A context in which automatic mixed precision is off."""

    def vjp(self, function: Callable[..., Any], spec: OpSpec, grad_outputs: Any, device: str, arguments: Any) -> Any:
        """Gradients of a kernel through this framework's autograd, NumPy arrays in and out."""

    def carried(self, function: Callable[..., Any], device: str) -> Callable[..., Any]:
        """The function over this framework's tensors as one over NumPy arrays."""


def default_device() -> str:
    """The device of a question without tensors: Paddle's current one where Paddle is in use, else "cpu"."""
    return load("paddle").current_device() if "paddle" in sys.modules else "cpu"


def load(name: str) -> Framework:
    """The framework of that name.

    Raises:
        FusionkitError: the framework is installed and cannot be imported, for a reason that has a known cure.
    """
    try:
        module: Any = importlib.import_module(f"fusionkit.frameworks.{name}")
    except OSError as error:
        from fusionkit.frameworks import paddle_home

        if name == "paddle" and (problem := paddle_home.unusable()):
            raise FusionkitError(". Cure: ".join(problem)) from error
        raise
    return module  # type: ignore[no-any-return]


_owners: dict[type, Framework | None] = {}


def framework_of(kind: type) -> Framework | None:
    """The framework whose tensors are of this type; None if it is no tensor type."""
    if kind not in _owners:
        roots = {base.__module__.partition(".")[0] for base in kind.__mro__}
        candidates = (load(name) for name in NAMES if name in roots)
        _owners[kind] = next((each for each in candidates if each.owns(kind)), None)
    return _owners[kind]
