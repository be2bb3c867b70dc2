"""A model folder with random weights in 8 or 4 bits: a tensor at a time, so depth takes no memory."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from examples.llama2_13b.folders import quantized_folder
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import layout
from examples.llama2_13b.folders.quantization import Quantization
from examples.llama2_13b.io.remarks import Screen
from fusionkit.quantized_weight import QuantizedWeight, quantize

Array = NDArray[Any]


def write(folder: Path, config: LlamaConfig, rounding: Quantization, seed: int) -> None:
    """Matrices are normal with the configuration's deviation, then rounded; norms are 1 and biases 0.

    A tensor depends on the seed and its place in the table alone.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    parts = [part for parameter in layout(config).values() for part in parameter.parts]
    shapes = {part.name: part.shape for part in parts}
    places = {name: place for place, name in enumerate(shapes)}
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(shapes), unit="tensor", file=Screen(sys.stderr), mininterval=0.5) as progress:

        def value_of(name: str) -> Array | QuantizedWeight:
            progress.update()
            shape, form = shapes[name], rounding.of(name)
            if len(shape) == 1 or form is None:
                return np.full(shape, 0 if name.endswith(".bias") else 1, np.float32)
            values = np.random.default_rng([seed, places[name]]).standard_normal(shape, np.float32)
            values *= config.initializer_range
            return quantize(values.T, form.dtype, form.group_size, form.symmetric)

        quantized_folder.write(folder, config, value_of)
