"""The members of the family, by `model_type`: what each adds to the Llama that `SUPPORTED` describes.

What a member has beyond that: Qwen2 biases of query, key and value, and a sliding window in some layers; Mistral a
sliding window in all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

FULL, SLIDING = "full_attention", "sliding_attention"  # transformers' names of a layer's attention
MAX_WINDOW_LAYERS = 28  # transformers' default for Qwen2
Fields = dict[str, Any]


@dataclass(frozen=True)
class Member:
    """A model type.

    Args:
        architecture: transformers' class.
        supported: values of fields instead of those in `SUPPORTED`; None: `windows` reads the field.
        defaults: what transformers takes for a field that is absent; null is another thing.
        windows: (fields, number of layers) -> (the sliding window or None, whether each layer has it).
    """

    architecture: str
    supported: dict[str, tuple[Any, ...] | None] = field(default_factory=dict)
    defaults: Fields = field(default_factory=dict)
    windows: Callable[[Fields, int], tuple[Any, list[bool]]] = lambda fields, layers: (None, [False] * layers)


def _window_of_mistral(fields: Fields, layers: int) -> tuple[Any, list[bool]]:
    window = fields["sliding_window"]
    return window, [window is not None] * layers


def _windows_of_qwen2(fields: Fields, layers: int) -> tuple[Any, list[bool]]:
    """Off unless `use_sliding_window` is true; then the layers from `max_window_layers` on have one, or those that
    `layer_types` names."""
    window = fields["sliding_window"] if fields.get("use_sliding_window") else None
    types = fields.get("layer_types")
    if types is not None:
        return window, [each == SLIDING for each in types]
    first = fields.get("max_window_layers")
    first = MAX_WINDOW_LAYERS if first is None else first
    return window, [window is not None and layer >= first for layer in range(layers)]


MEMBERS = {
    "llama": Member("LlamaForCausalLM", {"attention_bias": (False, True)}),
    "mistral": Member(
        "MistralForCausalLM",
        {"sliding_window": None, "layer_types": None},
        {"num_key_value_heads": 8, "sliding_window": 4096},
        _window_of_mistral,
    ),
    "qwen2": Member(
        "Qwen2ForCausalLM",
        {
            "attention_bias": (True,),
            "qkv_bias": (True,),
            "sliding_window": None,
            "use_sliding_window": (False, True),
            "layer_types": None,
        },
        {"num_key_value_heads": 32, "sliding_window": 4096},
        _windows_of_qwen2,
    ),
}


def member(name: Any, source: str) -> Member:
    """The one of that `model_type`.

    Raises:
        ValueError: it is none of the family.
    """
    if not isinstance(name, str) or name not in MEMBERS:
        rule = f"model_type must be {' or '.join(map(json.dumps, MEMBERS))}, got {json.dumps(name)}"
        raise ValueError(f"{source}: {rule}; this model does not cover others")
    return MEMBERS[name]


def windows(fields: Fields, source: str) -> tuple[int | None, tuple[bool, ...]]:
    """(the sliding window, whether each layer has it): both empty if no layer has one.

    Raises:
        ValueError: a field is of the wrong kind, or `layer_types` says something else than the other fields.
    """
    layers = fields.get("num_hidden_layers")
    types, name = fields.get("layer_types"), fields["model_type"]
    if type(layers) is not int:
        return None, ()  # refused by LlamaConfig
    for key in ("sliding_window", "max_window_layers"):
        value, least = fields.get(key), 0 if key.startswith("max") else 1
        if value is not None and (type(value) is not int or value < least):
            raise ValueError(f"{source}: {key} must be an integer of at least {least}, got {json.dumps(value)}")
    if types is not None and (not isinstance(types, list) or len(types) != layers):
        rule = f"layer_types must be a list of {layers} names, one a layer, got {json.dumps(types)}"
        raise ValueError(f"{source}: {rule}")
    window, sliding = MEMBERS[name].windows(fields, layers)
    expected = [SLIDING if each else FULL for each in sliding]
    if types is not None and (types != expected or (window is None and any(sliding))):
        rule = f"what sliding_window {json.dumps(window)} means for {name}"
        raise ValueError(f"{source}: layer_types must be {rule}, got {json.dumps(types)}")
    return (window, tuple(sliding)) if any(sliding) else (None, ())
