"""The static program of an exported folder, run step by step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle.base.framework import _current_expected_place

from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.decode_step import CACHE_DTYPES
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.step_inputs import StepInputs
from examples.llama2_13b.io.text import ENCODING
from examples.llama2_13b.model.llama import DTYPES
from fusionkit import passes


class StaticProgram:
    """`model.json` and `model.pdiparams` as `export` wrote them, on the device that Paddle uses.

    Args:
        folder: that `export` wrote.
        config: of the model.
        without_passes: names of the device's passes to leave out; "all" for every one.

    Raises:
        FileNotFoundError: a file is missing; it is named.
        ValueError: a file is truncated, or its program has other inputs than config.json asks for.
        FusionkitError: a layer of the program differs from what the device's passes know; it is named.
    """

    def __init__(self, folder: str | Path, config: LlamaConfig, without_passes: Sequence[str] = ()) -> None:
        self.dtype, self.cache_dtype = activation_dtype(Path(folder)), cache_dtype(Path(folder))
        device, layers = paddle.get_device(), config.num_hidden_layers
        self.program = passes.load(Path(folder) / "model", device, without=without_passes, num_layers=layers)
        self.passes_log = self.program.log
        self.steps_op_by_op = self.program.singly  # reason -> number of steps that the fused layers could not take
        # A fused layer begins rows at their first position. Behind a prefix that was found, or in a later part of a
        # prompt, the whole step runs op by op.
        self.takes_parts = self.program.run_singly is None
        self._names = self.program.input_names
        self._inputs: dict[str, paddle.Tensor] = {}  # filled anew for each step
        self._place = _current_expected_place()
        wanted = input_names(config.num_hidden_layers, self.cache_dtype)
        if different := sorted(set(self._names) ^ set(wanted)):
            raise ValueError(
                f"{folder}/model.json: must have the inputs of the {config.num_hidden_layers} layers in config.json, "
                f"got other ones: {', '.join(different[:3])}. Export the model again"
            )

    def __call__(self, inputs: StepInputs, cache: KeyValueCache) -> NDArray[np.float32]:
        """Scores of each row's next token, [rows, vocab_size]; the cache is written in place."""
        tensors = {name: self._filled(name, array) for name, array in vars(inputs).items()}
        tensors |= {f"key_cache_{layer}": keys for layer, keys in enumerate(cache.keys)}
        tensors |= {f"value_cache_{layer}": values for layer, values in enumerate(cache.values)}
        tensors |= {f"key_scales_{layer}": scales for layer, scales in enumerate(cache.key_scales)}
        tensors |= {f"value_scales_{layer}": scales for layer, scales in enumerate(cache.value_scales)}
        (logits,) = self.program([tensors[name] for name in self._names])
        result: NDArray[np.float32] = logits.numpy()
        return result

    def _filled(self, name: str, array: NDArray[Any]) -> paddle.Tensor:
        """The input of this name. Paddle 3.3.1 leaks 0.1 kB for each tensor that is made: 4 MB in 6,000 steps."""
        if name not in self._inputs:
            self._inputs[name] = paddle.to_tensor(array)
        self._inputs[name].get_tensor().set(array, self._place)
        return self._inputs[name]


def input_names(num_layers: int, cache_dtype: str) -> list[str]:
    parts = ("cache", "scales") if cache_dtype == "int8" else ("cache",)
    names = [f"{kind}_{part}" for part in parts for kind in ("key", "value")]
    caches = [f"{name}_{layer}" for name in names for layer in range(num_layers)]
    return [field.name for field in dataclasses.fields(StepInputs)] + caches


def activation_dtype(folder: Path) -> str:
    """What `export` computed in."""
    return _dtype(folder, "torch_dtype", DTYPES)


def cache_dtype(folder: Path) -> str:
    """Of keys and values: the activations', unless `export` was told another one."""
    has_own = "cache_dtype" in _fields(folder)
    return _dtype(folder, "cache_dtype", CACHE_DTYPES) if has_own else activation_dtype(folder)


def _dtype(folder: Path, name: str, allowed: Sequence[str]) -> str:
    dtype = _fields(folder).get(name)
    if dtype not in allowed:
        rule = f"{name} must be {' or '.join(allowed)}, got {dtype!r}"
        raise ValueError(f"{folder / 'config.json'}: {rule}. Export the model again")
    return str(dtype)


def _fields(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding=ENCODING))
    return fields
