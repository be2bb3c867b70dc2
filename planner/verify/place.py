"""Where plans are run: processes or devices of this machine, or emulated devices that account memory alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit_planner import devices

from fusionkit.errors import argument_error

CPU = "cpu"
ENTRY = Path("examples/llama2_13b/sft.py")
WHERE = "Run it where such devices are, or leave out --verify"


@dataclass(frozen=True)
class Place:
    """Args:
    kind: of the devices, as Paddle names them; "cpu" for processes of the host.
    name: of a device, or of the host's processor.
    is_rehearsed: they are emulated, so memory is accounted and nothing is timed.
    """

    kind: str
    name: str
    is_rehearsed: bool

    def __str__(self) -> str:
        if self.is_rehearsed:
            return f"emulated {self.kind} devices that stand for {self.name}"
        return f"{self.name}, {'processes' if self.kind == CPU else 'devices'}"


def find(device: str) -> Place:
    """Of `--device`: with a file of the probe the devices that Paddle finds here.

    Raises:
        ValueError: the device is neither here nor emulated.
    """
    here = about()
    if device.endswith(".json"):
        return Place(here["device"], here["name"], False)
    kind, name = devices.kind_of(device), devices.find(device).name
    if here["device"] == kind:
        return Place(kind, name, False)
    if kind in emulated():
        return Place(kind, name, True)
    rule = f"for devices that are here or emulated ({', '.join(emulated())})"
    raise argument_error("plan train", "--verify", rule, name, f"Paddle finds {here['device']} here", WHERE)


def about() -> dict[str, Any]:
    """The kind, the name and the bytes of the device that Paddle chooses, as a process of its own tells."""
    from fusionkit_planner.probe import Workers

    with Workers(1) as workers:
        found: dict[str, Any] = workers.ask(what="about")[0]
    return found


def emulated() -> tuple[str, ...]:
    """Kinds of devices that `fusionkit emulate` has."""
    from fusionkit_emulator.environment import DEVICE_TYPES

    kinds: tuple[str, ...] = DEVICE_TYPES
    return kinds


def entry(given: Path | None) -> Path:
    """The training command: the one that is given, or the repository's.

    Raises:
        ValueError: there is none.
    """
    if given is not None:
        if not given.is_file():
            raise argument_error("plan train", "--entry", "the file of a training command, such as sft.py", str(given))
        return given.resolve()
    own = Path(__file__).resolve().parents[2] / ENTRY
    if not own.is_file():
        raise argument_error(
            "plan train", "--entry", "given with --verify", "none", f"{ENTRY} is not beside this installation",
            f"Clone fusionkit's repository, and write --entry REPOSITORY/{ENTRY}",
        )  # fmt: skip
    return own
