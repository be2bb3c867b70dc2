"""Every way to use some devices for one model and one global batch, before it is known what fits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from fusionkit_planner.architecture import Architecture
from fusionkit_planner.layout import RECOMPUTES, Layout

SHARDING_STAGES = (1, 2, 3)


@dataclass(frozen=True)
class Degrees:
    """How the devices are divided: tensor x pipeline devices hold a copy of the model."""

    tensor: int
    pipeline: int
    copies: int


def degrees(devices: int) -> Iterator[Degrees]:
    """All whose product is the number of devices."""
    for tensor in divisors(devices):
        for pipeline in divisors(devices // tensor):
            yield Degrees(tensor, pipeline, devices // tensor // pipeline)


def layouts(found: Degrees, architecture: Architecture, global_batch: int) -> Iterator[Layout]:
    """All of these degrees: sharding with its stages, micro-batch, schedule and recomputation.

    Ranks of tensor divide the tokens, too: this sends as many bytes, and keeps less.
    """
    rows = global_batch // found.copies
    for sharding, stage in shardings(found.copies):
        for micro_batch in divisors(rows):
            for virtual_stages in schedules(found.pipeline, architecture.num_hidden_layers):
                for recompute in RECOMPUTES:
                    yield Layout(
                        tensor=found.tensor,
                        pipeline=found.pipeline,
                        data=found.copies // sharding,
                        sharding=sharding,
                        stage=stage,
                        virtual_stages=virtual_stages,
                        micro_batch=micro_batch,
                        micro_batches=rows // micro_batch,
                        recompute=recompute,
                        sequence_parallel=found.tensor > 1,
                    )


def shardings(copies: int) -> Iterator[tuple[int, int]]:
    """(degree, stage); a degree of 1 divides nothing, which is stage 0."""
    yield 1, 0
    for degree in divisors(copies)[1:]:
        for stage in SHARDING_STAGES:
            yield degree, stage


def schedules(pipeline: int, num_layers: int) -> list[int]:
    """Virtual stages: 1, and what divides every stage's layers into equal ranges."""
    if pipeline == 1 or num_layers % pipeline:
        return [1]
    return divisors(num_layers // pipeline)


def divisors(count: int) -> list[int]:
    """In rising order."""
    small = [each for each in range(1, math.isqrt(count) + 1) if count % each == 0]
    return small + [count // each for each in reversed(small) if each * each != count]
