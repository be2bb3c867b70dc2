"""The Llama with its matrices in 8 or 4 bits. For inference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray

from examples.llama2_13b.folders.layout import layout
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.folders.quantization import Quantization
from examples.llama2_13b.folders.quantized_reader import QuantizedReader
from examples.llama2_13b.model.llama import Llama
from examples.llama2_13b.model.quantized_layers import QuantizedColumns, QuantizedEmbedding, QuantizedHead
from fusionkit.quantized_weight import QuantizedWeight


class QuantizedLlama(Llama):
    """A `Llama` whose layers hold codes. Norms and biases are float32, and matrices where nothing gave them codes."""

    summary = ""  # of how its matrices came to be what they are

    @classmethod
    def load(
        cls,
        source: str | Path,
        dtype: str,
        rounding: Quantization | None = None,
        as_stored: bool = True,
        activations: str | None = None,
    ) -> QuantizedLlama:
        """The model in a folder or a GGUF file. One matrix at a time is held as it was.

        Args:
            source: of floats or codes.
            dtype: of the activations.
            rounding, as_stored: as of `QuantizedReader`.
            activations: as of `QuantizedWeight`, for all products with codes.

        Raises:
            FileNotFoundError, ValueError: as `Llama.from_pretrained`.
        """
        config = config_of(source)
        reader = QuantizedReader(source, layout(config), rounding, as_stored)
        with paddle.LazyGuard():  # no memory for what is replaced
            model = cls(config, dtype)
        parameters = dict(model.named_parameters())
        for name in sorted(model.table, key=lambda name: name.endswith(".weight")):  # biases first: layers take them
            value = reader.parameter(name)
            if isinstance(value, list):
                bias = parameters.get(name.removesuffix("weight") + "bias")
                codes = [replace(each, activations=activations) for each in value]
                model._replace(name, codes, None if bias is None else bias.numpy())
            else:
                parameters[name].set_value(value)
        model.summary = reader.summary
        model.eval()
        return model

    def save_pretrained(self, folder: str | Path, dtype: str | None = None) -> None:
        raise NotImplementedError("QuantizedLlama: quantize.py writes a folder of codes")

    def _replace(self, name: str, weights: list[QuantizedWeight], bias: NDArray[np.float32] | None) -> None:
        path = name.removesuffix(".weight")
        outer, _, own = path.rpartition(".")
        layer = dict(self.named_sublayers())[outer] if outer else self
        made: Any
        if own == "lm_head":
            made = QuantizedHead(weights[0])
        elif own == "embed_tokens":
            made = QuantizedEmbedding(weights[0])
        else:
            made = QuantizedColumns(weights, bias)
        setattr(layer, own, made)
