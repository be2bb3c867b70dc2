"""The base of the rotary frequencies and their scaling, from each of the places where `config.json` may keep them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from examples.llama2_13b.folders.rope_scaling import KINDS, RopeScaling

DEFAULT_THETA = 10000.0  # transformers' when no field says
DICTIONARIES = ("rope_parameters", "rope_scaling")  # of transformers 5, which reads both names, and of 4
KIND = ("rope_type", "type")  # the second is the older
LAYER_TYPE = "full_attention"  # of every layer that has a dictionary of its own
ORIGINAL = "original_max_position_embeddings"  # it may stand at the top, too


def theta(fields: dict[str, Any], source: str) -> Any:
    """`rope_theta` at the top, in a dictionary, or there under the layers' type.

    Raises:
        ValueError: two places differ. The fields are named.
    """
    found = {"rope_theta": fields.get("rope_theta")}
    for where, parameters in _dictionaries(fields, source):
        found[f"{where}.rope_theta"] = parameters.get("rope_theta")
    said = _agreed(found, source)
    newer, older = (f"{name}.rope_theta" for name in DICTIONARIES)
    if fields.get("rope_scaling") and found.get(newer) is not None and found[older] is found["rope_theta"] is None:
        rule = f"{older} must be {json.dumps(said)}, as {newer}, got none"
        raise ValueError(
            f"{source}: {rule}. transformers reads rope_scaling alone where it is there. Write it there too"
        )
    return DEFAULT_THETA if said is None else said


def scaling(fields: dict[str, Any], source: str) -> RopeScaling | None:
    """What a dictionary with a kind asks for, or None: its fields say how.

    Raises:
        ValueError: a kind or a field of it is not covered, is missing or cannot be, or two places differ. The fields
            are named.
    """
    found: dict[str, Any] = {}
    for where, parameters in _dictionaries(fields, source):
        kind = _agreed({f"{where}.{key}": parameters.get(key) for key in KIND}, source)
        if kind is not None and kind not in ("default", *KINDS):
            rule = f"default, {', '.join(KINDS)}, got {json.dumps(kind)}"
            name = next(key for key in KIND if parameters.get(key) is not None)
            raise ValueError(f"{source}: {where}.{name} must be {rule}; no other scaling is covered")
        made = _made(kind, where, parameters, fields, source)
        if kind is not None:
            found[where] = made
    places = list(found)
    for where in places[1:]:
        if found[where] != found[places[0]]:
            raise ValueError(f"{source}: {places[0]} and {where} must ask for the same scaling. Delete the wrong one")
    return found[places[0]] if places else None


def _made(
    kind: str | None, where: str, parameters: dict[str, Any], fields: dict[str, Any], source: str
) -> RopeScaling | None:
    made = KINDS.get(kind or "default")
    names = {field.name: field for field in dataclasses.fields(made)} if made else {}
    for key, value in parameters.items():
        if key not in (*KIND, "rope_theta", *names) and not _is_neutral(value):
            raise ValueError(f"{source}: {where}.{key} must be 1 or left out, got {json.dumps(value)}")
    if made is None:
        return None
    values = {name: parameters[name] for name in names if parameters.get(name) is not None}
    if ORIGINAL in names:  # where transformers looks for it, in this order
        values[ORIGINAL] = fields.get(ORIGINAL) or values.get(ORIGINAL) or fields.get("max_position_embeddings")
        if made.kind == "yarn" and "factor" not in values:
            values["factor"] = _ratio(fields.get("max_position_embeddings"), values[ORIGINAL])
    required = (name for name, field in names.items() if field.default is dataclasses.MISSING)
    if missing := [name for name in required if values.get(name) is None]:
        raise ValueError(f"{source}: {where}.{missing[0]} must be there for {made.kind}, got none. Add what is missing")
    try:
        return made(**values)
    except ValueError as error:
        raise ValueError(f"{source}: {where}.{error}") from None


def _ratio(positions: Any, original: Any) -> float | None:
    """None where one of them is no number to divide: what is wrong with it is said elsewhere."""
    numbers = all(type(each) is int and each > 0 for each in (positions, original))
    return positions / original if numbers else None


def _agreed(found: dict[str, Any], source: str) -> Any:
    """The one value of all places that have one."""
    said = [(where, value) for where, value in found.items() if value is not None]
    for where, value in said[1:]:
        if value != said[0][1]:
            rule = f"{said[0][0]} and {where} must be equal, got {json.dumps(said[0][1])} and {json.dumps(value)}"
            raise ValueError(f"{source}: {rule}. Delete the one that the model was not trained with")
    return said[0][1] if said else None


def _dictionaries(fields: dict[str, Any], source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(the field's whole name, its content): one of each name, or one a layer type."""
    for name in DICTIONARIES:
        value = fields.get(name)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{source}: {name} must be a JSON object, got {json.dumps(value)}")
        nested = {key: content for key, content in value.items() if isinstance(content, dict)}
        if other := sorted(set(nested) - {LAYER_TYPE}):
            raise ValueError(f"{source}: {name}.{other[0]} must not be there; every layer here is {LAYER_TYPE}")
        yield name, {key: content for key, content in value.items() if key not in nested}
        for key, content in nested.items():
            yield f"{name}.{key}", content


def _is_neutral(value: Any) -> bool:
    return value is None or value is False or (value is not True and value == 1)
