"""The process of one copy of `bench.data_parallel`: joins the other, then times the ways to sum gradients in turns."""

from __future__ import annotations

import gc
import time
import zlib
from collections.abc import Callable
from typing import Any

import paddle

from examples.llama2_13b.bench import tensor_parallel_rank
from examples.llama2_13b.bench.phases import tokens
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh
from fusionkit.frameworks.paddle import host_view

# In this order: sums takes the gradients that compute leaves.
COMPUTE, SUMS, AFTER, DURING = WAYS = ("compute", "sums", "after", "during")
# It enters no share, checks the others, and takes more than a third of a round.
ROUNDS_OF_AFTER = 3


class Rank(tensor_parallel_rank.Rank):
    """Each public method is a request, whose result is the answer."""

    keeps_freed_memory = False

    def prepare(self, options: dict[str, Any]) -> None:
        mesh = Mesh(data=self._group, replicas=self._group)
        self._copy = Copy(tensor_parallel_rank.config_of(options), options, self._rank, mesh)

    def round(self, number: int) -> dict[str, Any]:
        """{way: {"seconds", "gradients"}}; the latter is a checksum of the gradients that the way leaves."""
        checks = [(AFTER,)] if number < ROUNDS_OF_AFTER else []
        turns = tensor_parallel_rank.in_turns([(COMPUTE, SUMS), *checks, (DURING,)], number)
        return {way: self._run(way) for pair in turns for way in pair}

    def _run(self, way: str) -> dict[str, Any]:
        gc.collect()
        self._group.barrier()
        started = time.perf_counter()
        self._copy.ways[way]()
        seconds = time.perf_counter() - started
        found = {"seconds": seconds, "gradients": self._copy.checksum()}
        if way != COMPUTE:
            self._copy.forget()
        return found


class Copy:
    """A model whose weights stay, so that every round computes the same gradients."""

    def __init__(self, config: LlamaConfig, options: dict[str, Any], rank: int, mesh: Mesh) -> None:
        paddle.seed(0)
        self._model = Llama(config, options["dtype"], options["recompute"])
        self._gradients = Gradients(mesh, self._model.parameters()).watch()
        ids, labels = tokens(config, options["seq_len"])
        self._batch = [paddle.to_tensor((each + rank) % config.vocab_size) for each in (ids, labels)]
        self.ways: dict[str, Callable[[], None]] = {
            COMPUTE: self._compute,
            SUMS: self._gradients.reduce,
            AFTER: self._after,
            DURING: self._during,
        }

    def _compute(self) -> None:
        loss_sum, num_tokens = self._model.loss(*self._batch)
        (loss_sum / num_tokens.astype("float32")).backward()

    def _after(self) -> None:
        self._compute()
        self._gradients.reduce()

    def _during(self) -> None:
        self._gradients.expect(1, 1)
        self._after()

    def checksum(self) -> int:
        found = 0
        for parameter in self._model.parameters():
            found = zlib.crc32(host_view(parameter.grad).data, found)
        return found

    def forget(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None  # Paddle 3.3.1 ignores the name in clear_gradient(set_to_zero=False), and keeps zeros


if __name__ == "__main__":
    tensor_parallel_rank.main(Rank)
