"""The devices whose rates the backends declare."""

from __future__ import annotations

from fusionkit import registry
from fusionkit.backend import DeviceModel
from fusionkit.errors import argument_error


def known() -> dict[str, DeviceModel]:
    return {name: model for backend in registry.loaded() for name, model in backend.device_models.items()}


def find(name: str) -> DeviceModel:
    """The model with this name, or the first whose name begins so; upper and lower case are alike.

    Raises:
        ValueError: there is none; the error lists them all.
    """
    models = known()
    for fits in (str.__eq__, str.startswith):
        for full, model in models.items():
            if name and fits(full.lower(), name.lower()):
                return model
    raise argument_error("plan", "--device", f"one of {', '.join(models)}, or how one begins", repr(name))


def kind_of(name: str) -> str:
    """How Paddle names the devices of this model: the name of its backend.

    Raises:
        ValueError: as `find`.
    """
    model = find(name)
    return next(backend.name for backend in registry.loaded() if model in backend.device_models.values())
