"""The plan as text and as JSON. Every line says "simulated" where it shows a figure of a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from fusionkit_planner import llama, memory
from fusionkit_planner.advice import advice, together
from fusionkit_planner.llama import FORWARD, NAME, Row
from fusionkit_planner.overlap import SPLIT_LOSS, TARGET, peer_bandwidth

from fusionkit.backend import DeviceModel

DTYPE = "bfloat16"
HEADER = ("layer", "op", "pass", "Tg us", "Tc us", "c", "Tg/Tc", "S", "H at most", "H expected")
LEGEND = f"""\
Simulated from formulas, measured by nobody. Tg: the product alone, at the device's rate. Tc: the collective alone, as a
direct exchange at the link's rate. c = Tc/Tg. H = 1 - (Tf - Tg)/Tc, hidden. At most: the most chunks of at least 64
rows and 256 KiB, no losses. Expected: S chunks by the rule of fusionkit.parallel.chunks, the most of an all-reduce, and
a product that loses {SPLIT_LOSS:.0%} by being split. "dw beside it": the weight's gradient is computed while dx's
collective runs; an op that fuses dx alone has the line above."""
PLANS_LEGEND = """\
State: 16 bytes a parameter, less what is sharded. Activations: one micro-batch, every layer recomputed. Sending: the
collectives of a step alone, in which each device's share is one micro-batch; those of data parallelism can hide under
the whole backward pass. The products take {step:.2f} s in every plan."""


def rows_of(device: DeviceModel, tokens: int, world_size: int) -> list[Row]:
    return [
        make_row
        for make in (llama.sequence_parallel_rows, llama.tensor_parallel_rows)
        for make_row in make(device, DTYPE, tokens, world_size)
    ]


def text(device: DeviceModel, tokens: int, world_size: int) -> str:
    rows = rows_of(device, tokens, world_size)
    parts = [
        _title(device, tokens, world_size),
        columns([HEADER, *map(_cells, rows)]),
        LEGEND,
        "\n".join(_limits(device, tokens, world_size, rows)),
        "\n".join(_plans(device, tokens, world_size)),
    ]
    return "\n\n".join(parts)


def _title(device: DeviceModel, tokens: int, world_size: int) -> str:
    link = f"{device.link_bandwidth / 1e9:.0f} GB/s in each direction"
    rate = peer_bandwidth(device, world_size) / 1e9
    links = (
        f"a link of {link} to each of {world_size - 1} peers" if device.link_topology == "mesh" else f"links of {link}"
    )
    return (
        f"Simulated: one decoder layer of {NAME}, {tokens} tokens, {DTYPE}, tensor parallel {world_size}.\n"
        f"{device.name}: {device.flops[DTYPE] / 1e12:.0f} TFLOP/s, {device.memory_bytes / 1e9:.0f} GB, {links}: "
        f"{rate:.0f} GB/s in all.\nSource: {device.source}."
    )


def _cells(row: Row) -> tuple[str, ...]:
    t = row.times
    return (
        row.layer,
        row.op,
        row.direction,
        f"{t.product * 1e6:.0f}",
        f"{t.collective * 1e6:.0f}",
        f"{t.c:.2f}",
        f"{1 / t.c:.2f}",
        str(t.num_chunks),
        f"{t.bound:.0%}" + " <95%" * (t.bound < TARGET),
        f"{t.expected:.0%}",
    )


def _limits(device: DeviceModel, tokens: int, world_size: int, rows: Sequence[Row]) -> Iterator[str]:
    short = list(advice(device, DTYPE, tokens, world_size, rows))
    yield (
        f"Simulated: 95% cannot be reached in {len(short)} of {len(rows)}."
        if short
        else "Simulated: 95% can be reached."
    )
    yield from (f"  {line}" for line in short)
    forward = [row for row in rows if row.direction == FORWARD and row.op != llama.ALL]
    whole = together(forward).times
    yield (
        f"  All four forward products of the layer, if each could hide its neighbours' collectives: c = {whole.c:.2f}, "
        f"at most {whole.bound:.0%}."
    )


def _plans(device: DeviceModel, tokens: int, num_devices: int) -> Iterator[str]:
    plans = list(memory.plans(device, tokens, num_devices))
    header = ("plan", "state GB", "activations GB", "GB", f"fits {device.memory_bytes / 1e9:.0f} GB", "sending s")
    cells = [
        (
            plan.name,
            f"{plan.state_bytes / 1e9:.1f}",
            f"{plan.activation_bytes / 1e9:.1f}",
            f"{plan.total_bytes / 1e9:.1f}",
            "yes" if plan.fits(device) else "no",
            f"{plan.sending_s:.2f}",
        )
        for plan in plans
    ]
    yield f"Simulated: training on {num_devices} devices, with and without tensor parallelism."
    yield columns([header, *cells])
    yield PLANS_LEGEND.format(step=memory.step_flops_s(device, DTYPE, tokens))
    yield verdict(device, plans)


def verdict(device: DeviceModel, plans: Sequence[memory.Plan]) -> str:
    tensor, *others = plans
    fitting = [plan for plan in others if plan.fits(device)]
    if not fitting:
        return "No plan without tensor parallelism fits: overlap is what is left."
    best = min(fitting, key=lambda plan: plan.sending_s)
    if best.sending_s < tensor.sending_s:
        return (
            f"{best.name} fits and sends {tensor.sending_s / best.sending_s:.1f} times less long: without tensor "
            "parallelism there is less to hide, so it usually wins."
        )
    return f"Tensor parallelism sends for the shortest time here; {best.name} fits too."


def as_json(device: DeviceModel, tokens: int, world_size: int) -> dict[str, Any]:
    """Seconds and bytes."""
    return {
        "simulated": True,
        "model": NAME,
        "device": asdict(device),
        "tokens": tokens,
        "tensor_parallel": world_size,
        "products": [
            {
                **{key: value for key, value in asdict(row).items() if key != "times"},
                **asdict(row.times),
                **{name: getattr(row.times, name) for name in ("c", "bound", "expected", "filler_needed")},
            }
            for row in rows_of(device, tokens, world_size)
        ],
        "plans": [asdict(plan) | {"fits": plan.fits(device)} for plan in memory.plans(device, tokens, world_size)],
    }


def columns(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
