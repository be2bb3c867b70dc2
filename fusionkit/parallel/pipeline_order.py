"""In which order a stage of a pipeline computes the micro-batches of a step: arithmetic that needs no framework.

A stage holds one or more chunks of layers. Chunk c of stage s is followed by chunk c of stage s + 1, and chunk c of the
last stage by chunk c + 1 of the first.

Source: Narayanan et al. 2021, arXiv:2104.04473, section 2.2: one forward, one backward, also interleaved.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Action:
    """A chunk's forward or backward pass of one micro-batch."""

    is_forward: bool
    micro_batch: int
    chunk: int


def one_forward_one_backward(stage: int, stages: int, micro_batches: int, chunks: int) -> list[Action]:
    """Backward passes begin as soon as they can, so that few micro-batches are held: stages - stage of a single chunk.

    Forward passes go through the chunks in groups of as many micro-batches as there are stages. A last group that is
    smaller has the order of a whole one: what it lacks is left out, which keeps every other action's place.
    """
    whole = -(-micro_batches // stages) * stages if chunks > 1 else micro_batches
    order = [
        (number, chunk)
        for first in range(0, whole, stages)
        for chunk in range(chunks)
        for number in range(first, min(first + stages, whole))
    ]
    forward = [Action(True, number, chunk) for number, chunk in order]
    backward = [Action(False, number, chunks - 1 - chunk) for number, chunk in order]
    ahead = stages - stage - 1 if chunks == 1 else 2 * (stages - stage - 1) + (chunks - 1) * stages
    ahead = min(ahead, len(forward))
    actions = forward[:ahead]
    for pair in zip(forward[ahead:], backward, strict=False):
        actions += pair
    actions += backward[len(forward) - ahead :]
    return [action for action in actions if action.micro_batch < micro_batches]


def follower(action: Action, stage: int, stages: int, chunks: int) -> tuple[int, Action] | None:
    """Who goes on from a result: the stage and its action. None after the backward pass of the first chunk."""
    place = action.chunk * stages + stage
    if action.is_forward and place == stages * chunks - 1:
        return stage, Action(False, action.micro_batch, action.chunk)
    place += 1 if action.is_forward else -1
    return None if place < 0 else (place % stages, Action(action.is_forward, action.micro_batch, place // stages))
