"""Random tensors on the emulated device, and calls that must be refused."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from fusionkit.frameworks import custom_device
from fusionkit.frameworks.numpy import DTYPES
from fusionkit.frameworks.paddle import from_numpy, to_numpy


def tensor(device, *shape, dtype="float16", gradient=False):
    values = np.random.default_rng(zlib.crc32(repr((shape, dtype)).encode())).standard_normal(shape)
    made = from_numpy(values.astype(DTYPES[dtype]), f"{device}:0")
    made.stop_gradient = not gradient
    return made


def on_device(device, array):
    return from_numpy(np.asarray(array), f"{device}:0")


def float64(value):
    return to_numpy(value).astype(np.float64)


def is_nan(value):
    return bool(np.isnan(float64(value)).all())


def assert_refused(op, inputs, attributes, message):
    with pytest.raises(ValueError) as refusal:
        custom_device.run(op, inputs, *attributes)
    assert f"{op}: {message}" in str(refusal.value)
