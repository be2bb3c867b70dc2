"""Cards in the machine, read from Linux's list of PCI devices: no driver, no tool and no framework is needed."""

from __future__ import annotations

from pathlib import Path

DEVICES = Path("/sys/bus/pci/devices")


def cards(vendor: int, device: int | None = None, classes: tuple[int, ...] = ()) -> list[str]:
    """The addresses of a vendor's cards: of one device number, or of PCI base classes such as 0x03, display."""
    found = []
    for entry in sorted(DEVICES.glob("*")):
        if _number(entry / "vendor") != vendor or device not in (None, _number(entry / "device")):
            continue
        if not classes or _number(entry / "class") >> 16 in classes:
            found.append(entry.name)
    return found


def _number(file: Path) -> int:
    return int(file.read_text(), 16) if file.exists() else -1
