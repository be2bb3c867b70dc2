"""What cannot be, and why: by arithmetic before anything is priced, or for want of memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.candidates import Degrees
from fusionkit_planner.layout import Layout

BATCH = "the copies do not divide the global batch"
MEMORY = "more memory than a device has"


@dataclass(frozen=True)
class Refusal:
    """One layout, or all of some degrees.

    Args:
        reason: the same words for everything that is refused for it.
        degrees: of the devices.
        layout: None where every layout of these degrees is refused.
        needs_bytes: of the device that needs most; None where it was not computed.
    """

    reason: str
    degrees: Degrees
    layout: Layout | None = None
    needs_bytes: float | None = None


def of_degrees(found: Degrees, architecture: Architecture, global_batch: int) -> Refusal | None:
    """What no layout of these degrees can mend."""
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if (count := getattr(architecture, name)) % found.tensor:
            return Refusal(f"tensor does not divide {name} {count}", found)
    if found.pipeline > architecture.num_hidden_layers:
        return Refusal(f"more pipeline stages than num_hidden_layers {architecture.num_hidden_layers}", found)
    if global_batch % found.copies:
        return Refusal(f"{BATCH} {global_batch}", found)
    return None


def is_batch(refusal: Refusal) -> bool:
    """Whether another global batch would mend it."""
    return refusal.reason.startswith(BATCH)


def of_memory(found: Degrees, layout: Layout, needs_bytes: float) -> Refusal:
    return Refusal(MEMORY, found, layout, needs_bytes)


def nearest(refused: Iterable[Refusal]) -> Refusal | None:
    """The layout that lacks least memory; None where memory refused nothing."""
    lacking = [each for each in refused if each.needs_bytes is not None]
    return min(lacking, key=lambda each: each.needs_bytes or 0.0, default=None)


def counts(refused: Iterable[Refusal]) -> Counter[str]:
    return Counter(each.reason for each in refused)


def as_json(refusal: Refusal) -> dict[str, Any]:
    """Flat: with a layout all of it, else the degrees."""
    what = asdict(refusal.layout) if refusal.layout else asdict(refusal.degrees)
    needs = {} if refusal.needs_bytes is None else {"needs_bytes": refusal.needs_bytes}
    return {"reason": refusal.reason, **what, **needs}
