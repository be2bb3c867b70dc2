"""The communication domain that the vendor's fused products name. A card has one for all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusionkit.call import Call
from fusionkit.capability import YES, Predicate, Verdict
from fusionkit.errors import argument_error
from fusionkit.frameworks import custom_device

_domain: Any = None  # the Paddle group whose communicator the vendor's ops have taken in this process


def require_group(op: str, group: Any) -> None:
    """
    Raises:
        TypeError: group is no Paddle group: device memory is out of another communicator's reach.
    """
    if getattr(group, "process_group", None) is None:
        rule, got = "a Paddle group of at least two ranks, for tensors on npu", f"{group!r:.60}"
        raise argument_error(op, "group", rule, got, advice="Use paddle.distributed.new_group(ranks)", kind=TypeError)


def run(custom_op: str, x: Any, weight: Any, group: Any, *attributes: Any) -> list[Any]:
    """One of the vendor's fused products, without a bias. `attributes` follow hcom, the communicator's name."""
    global _domain
    # Paddle calls the argument a rank and takes it for the device's number: they differ on a second host.
    hcom = group.process_group.get_comm_name(x.place.custom_device_id())
    outputs = custom_device.run(custom_op, (x, weight, None), hcom, *attributes)
    _domain = group
    return outputs


@dataclass(frozen=True)
class OneDomain(Predicate):
    """No other group has given its communicator to the vendor's fused products in this process. It depends on what ran
    before; groups that need not exist (`GroupSpec`) are always right."""

    by_process = True

    def judge(self, call: Call) -> Verdict:
        group = call.value("group")
        if _domain is None or getattr(group, "process_group", None) is None or group.id == _domain.id:
            return YES
        return Verdict("no", (f"{self}: this process has given them group {_domain.id}, got group {group.id}",))

    def subjects(self) -> tuple[str, ...]:
        return ("group",)

    def __str__(self) -> str:
        return "group must be the one communication domain that a card has for fused products"
