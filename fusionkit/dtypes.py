"""The names of dtypes, in full and in short. What a framework calls them is in fusionkit/frameworks."""

from __future__ import annotations

from collections.abc import Mapping

SIXTEEN_BITS = ("bfloat16", "float16")
FLOATING = ("float32", *SIXTEEN_BITS)
QUANTIZED = ("int8", "int4")  # what a pack of a weight holds besides floats
ROUNDED = (None, "int8")  # what x becomes for the product with such a pack; None: it stays what it is
INTEGER = ("int32", "int64")
DTYPES = (*FLOATING, "float64", "bool", "uint8", "int8", *INTEGER)

SHORT_DTYPES: Mapping[str, str] = {  # as people write them
    **{"f32": "float32", "fp32": "float32", "float": "float32", "bf16": "bfloat16"},
    **{"f16": "float16", "fp16": "float16", "half": "float16", "f64": "float64", "fp64": "float64"},
    **{"u8": "uint8", "i8": "int8", "i32": "int32", "int": "int32", "i64": "int64", "long": "int64"},
}


def full_dtype(name: str) -> str:
    """The dtype's full name for one of its short ones; any other name as it is."""
    return SHORT_DTYPES.get(name, name)


def short_dtype(name: str) -> str:
    """The first short name of a dtype; its own where it has none."""
    return next((short for short, full in SHORT_DTYPES.items() if full == name), name)
