"""Which matrices of a model are in 8 or 4 bits, and how: `quantization_config` in config.json.

    "quantization_config": {
      "quant_method": "fusionkit",
      "dtype": "int4", "group_size": 32, "symmetric": false,
      "exceptions": {"lm_head.weight": {"dtype": "int8", "group_size": 32, "symmetric": true}}
    }

An exception may be null: that matrix is in floats. Vectors always are. Another library's field is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from fusionkit.dtypes import QUANTIZED
from fusionkit.quantized_weight import GROUP_SIZES, QuantizedWeight

FIELD, METHOD = "quantization_config", "fusionkit"
WHOLE_COLUMN = 0  # of a flag
# What commands say of their flags.
GROUP_SIZE_HELP = (
    f"weights of a column that share a scale: {', '.join(map(str, GROUP_SIZES))}, or {WHOLE_COLUMN} for all"
)
ACTIVATIONS_HELP = "what products with codes round their input to: int8; nothing if not given"
SYMMETRIC_HELP = "groups have a scale alone; with False a minimum too"
# Tokens are looked up in the first, and the second chooses among all of them: both feel the rounding most.
IN_8_BITS = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Format:
    """How a matrix is in codes.

    Args:
        dtype: "int8" or "int4".
        group_size: in_features that share a scale; None: all.
        symmetric: without minimums.
    """

    dtype: str
    group_size: int | None
    symmetric: bool

    @classmethod
    def of(cls, weight: QuantizedWeight) -> Format:
        return cls(weight.dtype, weight.group_size, weight.symmetric)

    def __str__(self) -> str:
        groups = "a scale a column" if self.group_size is None else f"groups of {self.group_size}"
        return f"{self.dtype}, {groups}{'' if self.symmetric else ' with minimums'}"


@dataclass(frozen=True)
class Quantization:
    """Of a model: the format of every matrix but the exceptions, by their names in the folder."""

    default: Format
    exceptions: Mapping[str, Format | None] = field(default_factory=dict)

    @classmethod
    def rounded_to(cls, default: Format) -> Quantization:
        """What a model of floats is rounded to: embedding and head in 8 bits."""
        return cls(default, dict.fromkeys(IN_8_BITS, replace(default, dtype="int8")))

    @classmethod
    def found(cls, formats: Mapping[str, Format | None]) -> Quantization:
        """Of matrices whose formats are known: the one that most have is the default.

        Raises:
            ValueError: none of them has codes.
        """
        counts = Counter(each for each in formats.values() if each is not None)
        if not counts:
            raise ValueError("quantization: at least one matrix must be in 8 or 4 bits, got none")
        default = counts.most_common(1)[0][0]
        return cls(default, {name: each for name, each in formats.items() if each != default})

    def of(self, name: str) -> Format | None:
        """Of a matrix; None: in floats."""
        return self.exceptions.get(name, self.default)

    def to_dict(self) -> dict[str, Any]:
        exceptions = {name: each and asdict(each) for name, each in self.exceptions.items()}
        return {"quant_method": METHOD, **asdict(self.default), "exceptions": exceptions}


def asked(command: str, weight_dtype: str | None, group_size: int, symmetric: bool) -> Quantization | None:
    """What a command's flags ask for; None: floats.

    Raises:
        ValueError: a flag cannot be, or has no effect; it is named.
    """
    if weight_dtype is None:
        return None
    if weight_dtype not in QUANTIZED:
        raise ValueError(f"{command}: --weight_dtype must be {' or '.join(QUANTIZED)}, got {weight_dtype!r}")
    if group_size not in (*GROUP_SIZES, WHOLE_COLUMN):
        rule = f"{', '.join(map(str, GROUP_SIZES))}, or {WHOLE_COLUMN} for a whole column"
        raise ValueError(f"{command}: --group_size must be {rule}, got {group_size}")
    return Quantization.rounded_to(Format(weight_dtype, group_size or None, symmetric))


def of(fields: Mapping[str, Any], source: str) -> Quantization | None:
    """What config.json says; None of a model in floats.

    Raises:
        ValueError: another library's field, or one that cannot be; it is named.
    """
    said = fields.get(FIELD)
    if said is None:
        return None
    where = f"{source}: {FIELD}"
    method = said.get("quant_method") if isinstance(said, dict) else None
    if method != METHOD:
        advice = "Take the model in floats or a GGUF file, and quantize it here"
        got = json.dumps(method if isinstance(said, dict) else said)
        raise ValueError(f'{where}.quant_method must be "{METHOD}", got {got}; others are not covered. {advice}')
    exceptions = said.get("exceptions") or {}
    if not isinstance(exceptions, dict):
        raise ValueError(f"{where}.exceptions must be a JSON object, got {json.dumps(exceptions)}")
    named = {
        name: None if each is None else _format(each, f"{where}.exceptions.{name}") for name, each in exceptions.items()
    }
    return Quantization(_format(said, where), named)


def _format(said: Any, where: str) -> Format:
    if not isinstance(said, dict):
        raise ValueError(f"{where} must be a JSON object or null, got {json.dumps(said)}")
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "dtype": (" or ".join(QUANTIZED), lambda each: each in QUANTIZED),
        "group_size": (
            f"{', '.join(map(str, GROUP_SIZES))} or null",
            lambda each: each is None or (type(each) is int and each in GROUP_SIZES),
        ),
        "symmetric": ("true or false", lambda each: isinstance(each, bool)),
    }
    for name, (rule, is_right) in rules.items():
        if name not in said or not is_right(said[name]):
            got = json.dumps(said[name]) if name in said else "none"
            raise ValueError(f"{where}.{name} must be {rule}, got {got}")
    return Format(said["dtype"], said["group_size"], said["symmetric"])
