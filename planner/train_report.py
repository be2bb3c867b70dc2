"""The answer as text and as JSON. Every figure is simulated, and the text says from which rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from fusionkit_planner import refusals
from fusionkit_planner.dominance import dominators, listed
from fusionkit_planner.layout import Layout
from fusionkit_planner.rates import Rates
from fusionkit_planner.report import columns
from fusionkit_planner.search import Answer, Plan, Question, peak
from fusionkit_planner.training_memory import StageMemory

BEST = 10
SAME = 5e-4  # of a step: less is no difference
PARTS = {
    "compute": "compute",
    "exposed_communication": "exposed communication",
    "bubble": "bubble",
    "optimizer": "optimizer",
    "other": "other",
}
SHOWN = ("tensor", "pipeline", "data", "sharding", "stage", "virtual_stages", "micro_batch", "recompute")
HEADER = ("", "tensor", "pipeline", "data", "sharding", "micro-batch", "recompute",
          "GB", "step s", "tokens/s/device", "MFU", "exposed s", "bubble s")  # fmt: skip
LEGEND = """\
Simulated. pipeline 4x2: 4 stages of 2 virtual stages. sharding 4/2: 4 copies share stage 2, which divides optimizer and
gradients (1: optimizer; 3: parameters too). GB: of the device that needs most. MFU: of the peak rate, recomputation
not counted. exposed: seconds of collectives that nothing hides. bubble: seconds in which stages wait for each other.
Missing places: plans that a listed one with the same tensor, pipeline and micro-batch replaces. It is no slower, and
they need no less memory."""


def text(answer: Answer) -> str:
    question = answer.question
    parts = [
        "\n".join(_title(question)),
        columns([HEADER, *(_cells(question, place + 1, plan) for place, plan in listed(answer.plans, BEST))]),
        LEGEND,
        "\n".join(_reasons(answer)),
        "\n".join(_memory(peak(question, answer.plans[0].layout))),
        "\n".join(_refused(answer)),
    ]
    return "\n\n".join(parts)


def _title(question: Question) -> Iterator[str]:
    model, rates = question.architecture, question.rates
    yield (
        f"Simulated: {model.name}, {model.parameters / 1e6:,.0f} million parameters, on {question.devices} x "
        f"{rates.name} of {question.memory_bytes / 1e9:.0f} GB; "
        f"steps of {question.global_batch} rows of {question.sequence} tokens."
    )
    if not rates.products:
        yield (
            "No product was measured on this device: kernels and links are taken at stated rates, so real steps take "
            "longer. `fusionkit plan probe` measures them there."
        )
    yield "Rates:"
    of_source: dict[str, list[str]] = {}
    for rate, source in _sources(rates).items():
        of_source.setdefault(source, []).append(rate)
    yield from (f"  {', '.join(names)}: {source}" for source, names in of_source.items())


def _sources(rates: Rates) -> dict[str, str]:
    """Of every rate that a plan rests on, whether somebody has said where it comes from or not."""
    needed = ("peak_flops", "memory_bandwidth", "memory_bytes", *(["levels"] if rates.levels else []))
    return dict.fromkeys(needed, "no source is stated") | dict(rates.sources)


def _cells(question: Question, place: int, plan: Plan) -> tuple[str, ...]:
    one, time = plan.layout, plan.time
    return (
        str(place),
        *layout_cells(one),
        f"{plan.needs_bytes / 1e9:.{1 if plan.needs_bytes >= 1e9 else 3}f}",
        f"{time.seconds:.3g}",
        rate(time.tokens_per_device(one, question.sequence)),
        f"{time.mfu(question.architecture, one, question.sequence, question.rates):.1%}",
        f"{time.exposed_communication:.3g}",
        f"{round(max(time.bubble, 0), 9):.3g}",
    )


def layout_cells(one: Layout) -> tuple[str, ...]:
    """From tensor to recompute."""
    return (
        str(one.tensor),
        f"{one.pipeline}x{one.virtual_stages}" if one.virtual_stages > 1 else str(one.pipeline),
        str(one.data),
        f"{one.sharding}/{one.stage}" if one.sharding > 1 else "-",
        f"{one.micro_batch} of {one.micro_batches}",
        one.recompute,
    )


def rate(tokens: float) -> str:
    """Tokens/s with four digits, never as a power of ten."""
    return f"{tokens:,.0f}" if tokens >= 1000 else f"{tokens:.4g}"


def _reasons(answer: Answer) -> Iterator[str]:
    yield _why(answer) or "No layout of another kind fits, and none of this kind needs less memory."


def _why(answer: Answer) -> str | None:
    """None where only one plan is listed."""
    (_, first), *others = listed(answer.plans, 2)
    return why(first, others[0][1]) if others else None


def why(first: Plan, second: Plan) -> str:
    """In which parts of a step the first listed plan is faster than the second, and what is different."""
    gained = second.time.seconds - first.time.seconds
    if gained < SAME * first.time.seconds:
        text = "The first and the second take as long"
        saved = second.needs_bytes - first.needs_bytes
        text += f"; the first needs {saved / 1e9:.1f} GB less." if saved > 0 else "."
        return f"{text} {_difference(first.layout, second.layout)}"
    changes = {name: getattr(second.time, part) - getattr(first.time, part) for part, name in PARTS.items()}
    least = SAME * first.time.seconds
    by_size = sorted(changes.items(), key=lambda item: -abs(item[1]))
    less = [f"{change:.3g} s less {name}" for name, change in by_size if change > least]
    more = [f"{-change:.3g} s more {name}" for name, change in by_size if change < -least]
    against = f", against {' and '.join(more)}" if more else ""
    return (
        f"The first is {gained / first.time.seconds:.1%} faster than the second: {' and '.join(less)}{against}. "
        f"{_difference(first.layout, second.layout)}"
    )


def _difference(first: Layout, second: Layout) -> str:
    names = [name for name in SHOWN if getattr(first, name) != getattr(second, name)]
    return "It has " + ", ".join(
        f"{name.replace('_', ' ')} {getattr(first, name)} instead of {getattr(second, name)}" for name in names
    ) + "."  # fmt: skip


def _memory(stage: StageMemory) -> Iterator[str]:
    yield (
        f"Simulated: memory of the first plan, {stage.total / 1e9:.1f} GB on pipeline stage {stage.stage}, in "
        f"{stage.moment}. The largest parts, and what makes each smaller:"
    )
    for item in stage.largest(5):
        yield f"  {item.num_bytes / 1e9:6.2f} GB  {item.name}: {item.shrink}"


def _refused(answer: Answer) -> Iterator[str]:
    degrees = [each for each in answer.refused if each.layout is None]
    lacking = [each for each in answer.refused if each.layout is not None]
    yield f"Simulated: {len(answer.plans)} layouts fit. Refused, and each named in --json:"
    for reason, count in refusals.counts(lacking).most_common():
        yield f"  {count} layouts: {reason}"
    for reason, count in refusals.counts(degrees).most_common():
        yield f"  {count} of the ways to divide {answer.question.devices} devices: {reason}"
    if any(map(refusals.is_batch, degrees)):
        yield f"  {_nearest_batches(answer.question)}."


def nothing(answer: Answer) -> str:
    """The error where no layout fits: what comes nearest, and what it needs."""
    question, one = answer.question, refusals.nearest(answer.refused)
    if one is None or one.layout is None:
        found = refusals.counts(answer.refused)
        advice = f". {_nearest_batches(question)}" if any(map(refusals.is_batch, answer.refused)) else ""
        return f"plan train: no way to divide {question.devices} devices is left: {'; '.join(found)}{advice}"
    stage = peak(question, one.layout)
    largest = " ".join(f"{item.name} {item.num_bytes / 1e9:.1f} GB: {item.shrink}." for item in stage.largest(2))
    return (
        f"plan train: --memory must be at least {(one.needs_bytes or 0) / 1e9:.1f} GB for any layout on "
        f"{question.devices} devices, got {question.memory_bytes / 1e9:.1f}. The nearest is {named(one.layout)}. "
        f"Its largest parts: {largest} Give more devices, a shorter --sequence, or more --memory"
    )


def _nearest_batches(question: Question) -> str:
    below = question.global_batch // question.devices * question.devices
    choices = [str(batch) for batch in (below, below + question.devices) if batch]
    return f"With --global-batch {' or '.join(choices)} every way divides it"


def named(one: Layout) -> str:
    """In words."""
    sharding = f", sharding {one.sharding} stage {one.stage}" if one.sharding > 1 else ""
    virtual = f" x {one.virtual_stages}" if one.virtual_stages > 1 else ""
    return (
        f"tensor {one.tensor}, pipeline {one.pipeline}{virtual}, data {one.data}{sharding}, micro-batch "
        f"{one.micro_batch}, recompute {one.recompute}"
    )


def as_json(answer: Answer) -> dict[str, Any]:
    """Seconds and bytes. Those that are listed have their memory in parts.

    `dominated_by` is the place, from 1, of the plan that is listed instead.
    """
    question, better = answer.question, dominators(answer.plans)
    in_parts = {place for place, _ in listed(answer.plans, BEST)}
    asked = asdict(question) | {"rates": question.rates.as_json()}
    return {
        "simulated": True,
        "question": asked,
        "plans": [
            _plan(question, plan, place in in_parts) | {"dominated_by": None if by is None else by + 1}
            for place, (plan, by) in enumerate(zip(answer.plans, better, strict=True))
        ],
        "why": _why(answer) if answer.plans else None,
        "refused": [refusals.as_json(each) for each in answer.refused],
    }


def _plan(question: Question, plan: Plan, in_parts: bool) -> dict[str, Any]:
    found = {
        "layout": asdict(plan.layout),
        "needs_bytes": plan.needs_bytes,
        "time": asdict(plan.time),
        "tokens_per_device": plan.time.tokens_per_device(plan.layout, question.sequence),
        "mfu": plan.time.mfu(question.architecture, plan.layout, question.sequence, question.rates),
    }
    return found | {"memory": asdict(peak(question, plan.layout))} if in_parts else found
