"""The base of the rotary frequencies, from each of the places where `config.json` may keep it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

DEFAULT_THETA = 10000.0  # transformers' when no field says
DICTIONARIES = ("rope_parameters", "rope_scaling")  # of transformers 5, which reads both names, and of 4
KIND = ("rope_type", "type")  # the second is the older
LAYER_TYPE = "full_attention"  # of every layer of this model


def theta(fields: dict[str, Any], source: str) -> Any:
    """`rope_theta` at the top, in a dictionary, or there under the layers' type.

    Raises:
        ValueError: two places differ, or a dictionary asks for scaled frequencies. The fields are named.
    """
    found = {"rope_theta": fields.get("rope_theta")}
    for name in DICTIONARIES:
        for where, parameters in _dictionaries(name, fields.get(name), source):
            _require_unscaled(where, parameters, source)
            found[f"{where}.rope_theta"] = parameters.get("rope_theta")
    said = [(where, value) for where, value in found.items() if value is not None]
    for where, value in said[1:]:
        if value != said[0][1]:
            rule = f"{said[0][0]} and {where} must be equal, got {json.dumps(said[0][1])} and {json.dumps(value)}"
            raise ValueError(f"{source}: {rule}. Delete the one that the model was not trained with")
    return said[0][1] if said else DEFAULT_THETA


def _dictionaries(name: str, value: Any, source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the field's whole name, its content): one, or one a layer type."""
    if value is None:
        return
    if not isinstance(value, dict):
        raise ValueError(f"{source}: {name} must be a JSON object, got {json.dumps(value)}")
    nested = {key: content for key, content in value.items() if isinstance(content, dict)}
    if other := sorted(set(nested) - {LAYER_TYPE}):
        raise ValueError(f"{source}: {name}.{other[0]} must not be there; every layer here is {LAYER_TYPE}")
    yield name, {key: content for key, content in value.items() if key not in nested}
    for key, content in nested.items():
        yield f"{name}.{key}", content


def _require_unscaled(where: str, parameters: dict[str, Any], source: str) -> None:
    for key in KIND:
        if parameters.get(key) not in (None, "default"):
            rule = f"{where}.{key} must be default, got {json.dumps(parameters[key])}"
            raise ValueError(f"{source}: {rule}; no scaling is covered")
    for key, value in parameters.items():
        if key not in (*KIND, "rope_theta") and not _is_neutral(value):
            raise ValueError(f"{source}: {where}.{key} must be 1 or left out, got {json.dumps(value)}")


def _is_neutral(value: Any) -> bool:
    return value is None or value is False or (value is not True and value == 1)
