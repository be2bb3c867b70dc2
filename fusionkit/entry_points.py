"""What installed distributions offer in a group of entry points."""

from __future__ import annotations

from functools import cache


@cache
def offered(group: str) -> dict[str, dict[str, list[str]]]:
    """Names in the group, each with the objects that it stands for and the distributions that say so; asked once."""
    import importlib.metadata  # 10 ms: not at `import fusionkit`

    found: dict[str, dict[str, list[str]]] = {}
    for point in importlib.metadata.entry_points(group=group):
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
        offering = found.setdefault(point.name, {}).setdefault(point.value, [])
        if distribution not in offering:
            offering.append(distribution)
    return found
