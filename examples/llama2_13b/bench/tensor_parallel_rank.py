"""The process of one rank of `bench.tensor_parallel`: joins the others, then trains two models in turns."""

from __future__ import annotations

import gc
import os
import sys
import time
from dataclasses import fields
from typing import Any

import paddle
from fusionkit_bench.mc2.rank import die_with, serve

import fusionkit as fk
from examples.llama2_13b.bench.phases import BETA1, BETA2, EPSILON, WEIGHT_DECAY, tokens, weight
from examples.llama2_13b.folders import layout
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.gradients import Gradients
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.tensor_parallel import TensorParallel
from examples.llama2_13b.train.optimizer import AdamW
from fusionkit.parallel import Communicator
from fusionkit.policy import use_mc2

PORT = 29500  # of the store, in a namespace that nobody else uses
JOIN_S = 120.0
LEARNING_RATE = 1e-4
RUNS = {"mc2": True, "serial": False}
FUSED = ("all_gather_matmul", "matmul_reduce_scatter", "matmul_all_reduce")


class Rank:
    """Each public method is a request, whose result is the answer."""

    keeps_freed_memory = True

    def __init__(self, rank: int, world_size: int) -> None:
        self._rank, self._world_size = rank, world_size

    def join(self, meeting: bytes | tuple[str, str]) -> None:
        """meeting: an identifier for the ranks of one host, or (rank 0's address, this rank's) for TCP."""
        if self.keeps_freed_memory:
            fk.keep_freed_memory()
        if isinstance(meeting, bytes):
            self._group = Communicator(meeting, self._rank, self._world_size, timeout=JOIN_S)
            return
        master, own = meeting
        self._store = paddle.base.core.TCPStore(master, PORT, self._rank == 0, self._world_size, int(JOIN_S))
        self._group = Communicator.from_store(
            self._store, self._rank, self._world_size, name="step", address=own, timeout=JOIN_S
        )

    def prepare(self, options: dict[str, Any]) -> None:
        shards = TensorParallel(self._group)
        config = config_of(options)
        self._trained = {run: Trained(config, options, shards) for run in RUNS}

    def round(self, number: int) -> dict[str, Any]:
        """{run: {"seconds", "losses", "ops"}} of one step of each; ops are (op, backend, reason, count)."""
        return {run: self._step(run) for run in in_turns(list(RUNS), number)}

    def _step(self, run: str) -> dict[str, Any]:
        gc.collect()
        fk.ledger().reset()
        self._group.barrier()
        started = time.perf_counter()
        with use_mc2(RUNS[run]):
            loss = self._trained[run].step()
        seconds = time.perf_counter() - started
        ops = [(*entry, count) for entry, count in fk.ledger().items() if entry[0].startswith(FUSED)]
        return {"seconds": seconds, "losses": loss, "ops": ops}


def config_of(options: dict[str, Any]) -> LlamaConfig:
    names = {field.name for field in fields(LlamaConfig)}
    sizes = {name: value for name, value in options.items() if name in names}
    return LlamaConfig(max_position_embeddings=options["seq_len"], rms_norm_eps=1e-5, **sizes)


def in_turns(contestants: list[Any], number: int) -> list[Any]:
    """The order of a round; every other one is reversed, since what runs later finds another machine."""
    return contestants if number % 2 else contestants[::-1]


class Trained:
    """A model with its optimizer; all have the same first weights and see the same tokens."""

    def __init__(self, config: LlamaConfig, options: dict[str, Any], shards: TensorParallel) -> None:
        with paddle.LazyGuard():
            self._model = Llama(config, options["dtype"], shards=shards)
        for name, parameter in self._model.named_parameters():
            row = self._model.table[name]
            own = [layout.own(_tensor(part, config), part, shards.rank, shards.size) for part in row.parts]
            parameter.set_value(row.join(own))
        self._mesh = Mesh(tensor=shards)
        self._optimizer = AdamW(self._model, self._mesh, BETA1, BETA2, EPSILON, WEIGHT_DECAY, max_grad_norm=1.0)
        self._batch = [paddle.to_tensor(each) for each in tokens(config, options["seq_len"])]

    def step(self) -> float:
        loss_sum, num_tokens = self._model.loss(*self._batch)
        loss = loss_sum / num_tokens.astype("float32")
        loss.backward()
        Gradients(self._mesh, self._model.parameters()).reduce()
        self._optimizer.step(LEARNING_RATE)
        return float(loss)


def _tensor(part: layout.Part, config: LlamaConfig) -> layout.Array:
    return weight(part.name, part.shape, config.initializer_range)


def main(kind: type[Rank] = Rank) -> None:
    from multiprocessing.connection import Connection

    number, world_size, core, parent, descriptor = map(int, sys.argv[1:])
    die_with(parent)
    os.sched_setaffinity(0, {core})
    connection: Any = Connection(descriptor)
    rank: Any = kind(number, world_size)
    serve(connection, rank)


if __name__ == "__main__":
    main()
