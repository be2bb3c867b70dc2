"""AdamW on float32 parameters with clipping of the global norm, and its state in Hugging Face's layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor

from examples.llama2_13b.folders import checkpoint
from examples.llama2_13b.folders.layout import trainable
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.trace import COMMUNICATION, COMPUTE, EXPOSED
from fusionkit import optimizer

MOMENTS = ("moment1", "moment2")
POWERS = ("beta1_pow_acc", "beta2_pow_acc")  # beta^step, the same for all parameters


class AdamW:
    """AdamW in one pass over memory a parameter, clipping included.

    Args:
        model: whose trainable parameters are updated.
        mesh: of the processes that train it.
        beta1, beta2, epsilon: as in Loshchilov and Hutter 2019, arXiv:1711.05101.
        weight_decay: likewise, of the parameters that the table calls decayed: matrices, not norms.
        max_grad_norm: the gradients of all parameters together are scaled down to this norm; 0 for no limit.
    """

    def __init__(
        self,
        model: Any,
        mesh: Mesh,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self._model, self._mesh, self._max_grad_norm = model, mesh, max_grad_norm
        self._table = trainable(model.table)
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if name in self._table}
        decayed = {parameter.name for name, parameter in self._parameters.items() if self._table[name].is_decayed}
        self._owned = mesh.sharding.own(list(self._parameters.values()))
        self._adamw = optimizer.AdamW(
            learning_rate=0.0,
            beta1=beta1,
            beta2=beta2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            apply_decay_param_fun=decayed.__contains__,
            parameters=self._owned,
        )

    def step(self, learning_rate: float) -> float:
        """Update every parameter, forget the gradients, and return their norm before clipping."""
        self._model.divide_layers()
        trace = self._mesh.trace
        with trace.span(EXPOSED, "norm of all gradients"):
            norm = self._mesh.gradient_norm(self._parameters.values())
        scale = clipping_scale(norm, self._max_grad_norm)
        if self._owned:  # an adapter may have fewer matrices than there are ranks; Paddle's step needs one
            with trace.span(COMPUTE, "update"):
                self._adamw.set_lr(learning_rate)
                self._adamw.step(scale)
                self._adamw.clear_grad(set_to_zero=False)  # else Paddle fills new memory with zeros and drops it
        with trace.span(EXPOSED, "values from their owners"), trace.span(COMMUNICATION, "values from their owners"):
            self._mesh.sharding.spread(list(self._parameters.values()))
        return norm

    def _owners(self) -> dict[str, int]:
        """The rank of sharding that has the state of each parameter."""
        return dict(zip(self._parameters, self._mesh.sharding.owners(self._parameters.values()), strict=True))

    def own(self) -> dict[str, Tensor]:
        """The parameters whose state this rank has."""
        owners = self._owners()
        return {name: one for name, one in self._parameters.items() if owners[name] == self._mesh.sharding.rank}

    def moments(self, moment: str) -> dict[str, Tensor]:
        """One of MOMENTS of each of `own`."""
        state = self._adamw.state_dict()
        return {name: state[f"{parameter.name}_{moment}_0"] for name, parameter in self.own().items()}

    def scalars(self) -> dict[str, float]:
        """Of the state; the first rank owns a parameter, for each has its own copy of what is the same for all."""
        state = self._adamw.state_dict()
        return {power: _any(state, power) for power in POWERS}

    def load(self, folder: Path, scalars: dict[str, float]) -> None:
        """Take over the moments in a checkpoint, and the scalars. Call it before the first step."""
        own = self.own()
        state: dict[str, Any] = {}
        for moment in MOMENTS:
            files = checkpoint.Reader(folder, self._table, moment, self._model.shards)
            for name, parameter in own.items():
                state[f"{parameter.name}_{moment}_0"] = paddle.to_tensor(files.read(name))
        for parameter in own.values():
            for power in POWERS:
                state[f"{parameter.name}_{power}_0"] = paddle.full([1], scalars[power], "float32")
        self._adamw.set_state_dict(state)


def _any(state: dict[str, Any], power: str) -> float:
    return float(next(value.item() for name, value in state.items() if name.endswith(f"_{power}_0")))


def clipping_scale(norm: float, max_norm: float) -> float:
    """The factor that brings gradients of this joint norm down to max_norm; 0 is no limit.

    Raises:
        FloatingPointError: the norm is not finite.
    """
    if not math.isfinite(norm):
        raise FloatingPointError(f"the gradient's norm must be finite, got {norm}")
    return max_norm / norm if 0 < max_norm < norm else 1.0
