"""What the ranks of the tests do. conftest.Ranks forks them; in a namespace of its own each runs this as a module."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from fusionkit.parallel import Communicator, CommunicatorError, group, unique_id
from fusionkit.parallel.native import DTYPES

# One element, an odd number, one more than the direct limit of 4 KiB in every dtype, more than a ring of 256 KiB.
SIZES = (0, 1, 17, 4099, 150001)


def sample(dtype: np.dtype, shape, rank: int, seed: int = 0) -> np.ndarray:
    """Values whose product over 8 ranks stays finite, negative ones and fractions among them."""
    generator = np.random.default_rng([seed, rank])
    if dtype.kind == "b":
        return generator.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        return generator.integers(0 if dtype.kind == "u" else -9, 9, shape).astype(dtype)
    values = generator.uniform(0.5, 2, shape) * generator.choice([-1, 1], shape)
    return (values + 1j * generator.uniform(0.5, 1, shape) if dtype.kind == "c" else values).astype(dtype)


def reductions(communicator: Communicator, dtype: str, op: str) -> list[np.ndarray]:
    """all_reduce, reduce_scatter and reduce of each size."""
    found = next(each for each in DTYPES if str(each) == dtype)
    results = []
    for size in SIZES:
        x = sample(found, (communicator.world_size, size), communicator.rank)
        results.append(communicator.all_reduce(x[0], op))
        results.append(communicator.reduce_scatter(x, op))
        results.append(communicator.reduce(x[0], communicator.world_size - 1, op))
    return results


def all_reductions(communicator: Communicator, cases: list[list[str]]) -> list[list[np.ndarray]]:
    return [reductions(communicator, dtype, op) for dtype, op in cases]


def movements(communicator: Communicator) -> list[bool]:
    """Each call that only moves data, in every dtype and size, against what the other ranks have."""
    rank, world_size = communicator.rank, communicator.world_size
    passed = []
    for dtype in DTYPES:
        for size in SIZES:
            all_ranks = [sample(dtype, size, each) for each in range(world_size)]
            root = size % world_size
            gathered = communicator.all_gather(all_ranks[rank])
            passed.append(np.array_equal(gathered, np.stack(all_ranks)))
            passed.append(np.array_equal(communicator.broadcast(all_ranks[rank], root), all_ranks[root]))
            # Rank i sends i + 1 times what it has of the first elements to rank j, j + size // 8 of them.
            parts = [all_ranks[rank][: to + size // 8] for to in range(world_size)]
            expected = [all_ranks[source][: rank + size // 8] for source in range(world_size)]
            received = communicator.all_to_all(parts, [part.shape for part in expected])
            passed.append(all(map(np.array_equal, received, expected)))
            out = np.empty(size, dtype)
            with group():
                communicator.send(all_ranks[rank], (rank + 1) % world_size)
                communicator.recv(out, (rank - 1) % world_size)
            passed.append(np.array_equal(out, all_ranks[(rank - 1) % world_size]))
    communicator.barrier()
    return passed


def digest(communicator: Communicator, seed: int, rounds: int) -> str:
    """Of reductions between which each rank sleeps for random times."""
    delays, total = np.random.default_rng([seed, communicator.rank]), hashlib.sha256()
    for number in range(rounds):
        size = 1 + 977 * number
        time.sleep(delays.uniform(0, 0.002))
        for dtype in ("float32", "float16"):
            x = (sample(np.dtype(dtype), size, communicator.rank, number) * 1e-3).astype(dtype)
            total.update(communicator.all_reduce(x).tobytes())
    return total.hexdigest()


def crossing(communicator: Communicator) -> float:
    """All send 2 MB to all, receives last, in one group."""
    own, others = np.full(500_000, communicator.rank, "f"), np.empty((communicator.world_size, 500_000), "f")
    with group():
        for peer in range(communicator.world_size):
            communicator.send(own, peer)
        for peer in range(communicator.world_size):
            communicator.recv(others[peer], peer)
    return bool((others == np.arange(communicator.world_size)[:, None]).all())


def small(communicator: Communicator, seed: int, rounds: int) -> str:
    """Of small reductions, now and then after a pause that other ranks do not make."""
    delays, total = np.random.default_rng([seed, communicator.rank]), hashlib.sha256()
    for number in range(rounds):
        if delays.uniform() < 0.03:
            time.sleep(delays.uniform(0, 0.003))
        x = sample(np.dtype("float32"), 1 + number % 61, communicator.rank, number)
        in_flight = communicator.all_reduce(x, sync_op=False) if number % 3 == 0 else None
        total.update(communicator.all_reduce(x).tobytes())
        if in_flight is not None:
            total.update(in_flight.wait().tobytes())
    return total.hexdigest()


def many(communicator: Communicator, transport: str, meetings: list[str]) -> list[int]:
    """Several communicators at once, some of them without this rank, used in one group."""
    rank, world_size = communicator.rank, communicator.world_size
    first, last = (
        join(transport, meeting, rank - begin, world_size - 1, 30) if begin <= rank < begin + world_size - 1 else None
        for begin, meeting in enumerate(meetings)
    )
    x, sums = np.full(100_000, 1 + rank), []
    with group():
        sums.append(communicator.all_reduce(x))
        sums += [each.all_reduce(x) for each in (first, last) if each is not None]
    return [int(each[-1]) for each in sums]


def overlapping(communicator: Communicator, rounds: int) -> list[bool]:
    """Many calls in flight, awaited last to first, a blocking one among them, against the same calls one by one."""
    rank, world_size = communicator.rank, communicator.world_size
    passed = []
    for size in SIZES:
        x = sample(np.dtype("float32"), (world_size, size), rank, size)
        parts = [x[to][: size // (1 + (rank + to) % 3)] for to in range(world_size)]

        def calls(sync_op: bool, x=x, parts=parts) -> list:
            return [
                communicator.all_reduce(x, sync_op=sync_op),
                communicator.all_gather(x[0], sync_op=sync_op),
                communicator.reduce_scatter(x, "max", sync_op=sync_op),
                communicator.broadcast(x, world_size - 1, sync_op=sync_op),
                communicator.reduce(x, 0, sync_op=sync_op),
                communicator.all_to_all(parts, sync_op=sync_op, in_turn=not sync_op),
            ]

        expected = calls(True)
        works = [work for _ in range(rounds) for work in calls(False)]
        between = communicator.all_reduce(x)
        results = [work.wait() for work in reversed(works)][::-1]
        passed.append(np.array_equal(between, expected[0]) and all(work.is_completed() for work in works))
        for number, result in enumerate(results):
            same = expected[number % len(expected)]
            lists = isinstance(same, list)
            passed.append(all(map(np.array_equal, result, same)) if lists else np.array_equal(result, same))
    return passed


def into_views(communicator: Communicator) -> bool:
    """`out` as rows of one array, empty ones too; in place; and sends and receives in flight."""
    rank, world_size = communicator.rank, communicator.world_size
    gathered = np.zeros((world_size, 5000), "f")
    for step in range(1, world_size):
        to, source = (rank - step) % world_size, (rank + step) % world_size
        sent = [np.full(5000 if peer == to else 0, rank + 1, "f") for peer in range(world_size)]
        out = [gathered[source] if peer == source else gathered[0, :0] for peer in range(world_size)]
        communicator.all_to_all(sent, out=out, sync_op=False, in_turn=True)  # dropped: the barrier comes after it
    total = np.full(5000, rank, "f")
    communicator.all_reduce(total, out=total, sync_op=False)
    received = np.empty((2, 100_000))
    works = [communicator.recv(each, (rank - 1) % world_size, sync_op=False) for each in received]
    works += [
        communicator.send(np.full(100_000, rank + n, float), (rank + 1) % world_size, sync_op=False) for n in range(2)
    ]
    communicator.barrier()
    for work in works:
        work.wait()
    gathered[rank] = rank + 1
    right = np.array_equal(gathered[:, ::4999], np.arange(1, world_size + 1)[:, None].repeat(2, 1))
    right &= np.array_equal(received[:, 0], (rank - 1) % world_size + np.arange(2))
    return bool(right and (total == sum(range(world_size))).all())


def turns(communicator: Communicator, in_turn: bool) -> bool:
    """Whether rank 2 has rank 0's second message while rank 1 does not take the first, which is for it."""
    out, sizes = np.zeros(1_000_000, "f"), [(0, 1_000_000, 0), (0, 0, 1_000_000)]
    if communicator.rank == 1:
        time.sleep(1)
    works = []
    for size in sizes:
        sent = [np.ones(each if communicator.rank == 0 else 0, "f") for each in size]
        received = [out[: size[communicator.rank]], out[:0], out[:0]]
        works.append(communicator.all_to_all(sent, out=received, sync_op=False, in_turn=in_turn))
    time.sleep(0.5)
    has_arrived = bool(out[-1] == 1)
    for work in works:
        work.wait()
    assert communicator.rank == 0 or out[-1] == 1
    return has_arrived


def works_of_a_dead_peer(communicator: Communicator) -> list[str]:
    """What each work in flight tells when the last rank ends without a word."""
    if communicator.rank == communicator.world_size - 1:
        time.sleep(0.3)
        os._exit(0)
    works = [communicator.all_reduce(np.ones(size, "f"), sync_op=False) for size in (8, 500_000, 8)]
    texts = []
    for work in works:
        try:
            work.wait()
        except CommunicatorError as error:
            texts.append(str(error))
    return texts


def closing(communicator: Communicator) -> str:
    """Rank 0 leaves with works in flight, one of them dropped; what its other work tells."""
    if communicator.rank != 0:
        time.sleep(0.5)
        return ""
    communicator.all_reduce(np.ones(500_000), sync_op=False)
    work = communicator.all_reduce(np.ones(500_000), sync_op=False)
    communicator.close()
    try:
        work.wait()
    except CommunicatorError as error:
        return str(error)
    return "done"


def forever(communicator: Communicator, size: int, started: str) -> int:
    communicator.all_reduce(np.ones(size, "f"))
    Path(started, str(communicator.rank)).touch()
    while True:
        communicator.all_reduce(np.ones(size, "f"))


def late(communicator: Communicator, sleeper: int, seconds: float) -> None:
    if communicator.rank == sleeper:
        time.sleep(seconds)
    communicator.all_gather(np.ones(8))


def different(communicator: Communicator, how: str) -> None:
    one, two, odd = np.ones(8, "f"), np.ones(9, "f"), communicator.rank == 1
    if how == "shape":
        communicator.all_reduce(two if odd else one)
    elif how == "dtype":
        communicator.all_gather(one.astype("int32") if odd else one)
    elif how == "op":
        communicator.broadcast(one) if odd else communicator.barrier()
    elif how == "reduction":
        communicator.all_reduce(one, "max" if odd else "sum")
    elif how == "root":
        communicator.broadcast(one, root=1 if odd else 0)
    elif how == "pair":
        communicator.recv(np.ones(3), 0) if odd else communicator.send(one, 1) if communicator.rank == 0 else None
    communicator.barrier()


def fused_forever(communicator: Communicator, op: str, started: str) -> None:
    """Overlapped calls until another rank is gone."""
    from fusionkit_backends.cpu import overlap

    import fusionkit as fk

    x, weight = np.ones((504, 512), "f"), np.ones((512, 512), "f")  # rows for 2 and 3 ranks
    with overlap.overlapped():
        getattr(fk, op)(x, weight, group=communicator)
        (Path(started) / str(communicator.rank)).touch()
        while True:
            getattr(fk, op)(x, weight, group=communicator)


def groups_of_two(communicator: Communicator) -> tuple[Communicator, Communicator]:
    """Of four ranks: with the neighbour (0 and 1, 2 and 3), and with the rank two places away."""
    rank, made = communicator.rank, []
    for leader, place in ((rank // 2 * 2, rank % 2), (rank % 2, rank // 2)):
        identifiers = communicator.all_gather(np.frombuffer(unique_id(), np.uint8))
        made.append(Communicator(identifiers[leader].tobytes(), place, 2, timeout=communicator.timeout))
    return made[0], made[1]


def accumulated(
    communicator: Communicator, arrays: dict[str, list], recomputes: bool
) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
    """A block of two linear layers on a 2 x 2 grid of ranks: tensor parallel with the neighbour, data parallel with the
    other. Two micro-batches add up their gradients, which the second group then sums. This rank's y of the last
    micro-batch, gradients of both weights, and how often a fused op ran."""
    import paddle

    import fusionkit as fk
    from fusionkit import nn, parallel

    tensor_parallel, data_parallel = groups_of_two(communicator)
    rank, replica = tensor_parallel.rank, data_parallel.rank
    x, first, second, dy = (np.array(arrays[name], "f") for name in ("x", "first", "second", "dy"))
    up = parallel.ColumnSequenceParallelLinear(
        *first.shape, has_bias=False, mp_group=tensor_parallel, gather_output=False
    )
    down = parallel.RowSequenceParallelLinear(
        *second.shape, has_bias=False, mp_group=tensor_parallel, input_is_parallel=True
    )
    up.weight.set_value(np.split(first, 2, 1)[rank])
    down.weight.set_value(np.split(second, 2, 0)[rank])

    def block(tokens):
        return down(paddle.nn.functional.relu(up(tokens)))

    for micro in range(2):
        tokens = paddle.to_tensor(np.split(x[replica, micro], 2)[rank])
        tokens.stop_gradient = False
        y = nn.recompute(block, tokens) if recomputes else block(tokens)
        y.backward(paddle.to_tensor(np.split(dy[replica, micro], 2)[rank]))
    gradients = {
        name: data_parallel.all_reduce(layer.weight.grad.numpy()) for name, layer in (("first", up), ("second", down))
    }
    num_fused = sum(
        count for (op, *_), count in fk.ledger().items() if op in ("all_gather_matmul", "matmul_reduce_scatter")
    )
    return y.numpy(), gradients, num_fused


def segments(communicator: Communicator) -> tuple[list[str], bool]:
    """What is in /dev/shm while a communicator is open, and whether its memory is mapped at all."""
    communicator.all_reduce(np.ones(100_000))
    mapped = "fusionkit-communicator" in Path("/proc/self/maps").read_text()
    return sorted(os.listdir("/dev/shm")), mapped


class Folder:
    """A store of files: it needs no server, and nothing but `set` and `get`."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)

    def set(self, key: str, value: bytes) -> None:
        partial = self.folder / f"{os.getpid()}.{threading.get_ident()}.partial"  # ranks may be threads
        partial.write_bytes(value)
        partial.rename(self.folder / key.replace("/", "-"))

    def get(self, key: str) -> bytes:
        while not (self.folder / key.replace("/", "-")).exists():
            time.sleep(0.002)
        return (self.folder / key.replace("/", "-")).read_bytes()


def join(transport: str, meeting: str, rank: int, world_size: int, timeout: float) -> Communicator:
    if transport == "memory":
        return Communicator(bytes.fromhex(meeting), rank, world_size, timeout=timeout)
    if transport == "namespaces":  # which tell themselves who is a neighbour
        address = os.environ["RANK_ADDRESS"]
        return Communicator.from_store(Folder(meeting), rank, world_size, name="test", address=address, timeout=timeout)
    host = str(rank if transport == "tcp" else rank // 2)
    return Communicator.from_store(Folder(meeting), rank, world_size, name="test", host=host, timeout=timeout)


def begin_together(processes: list[subprocess.Popen[bytes]]) -> None:
    """Lets ranks join that were started with pipes, when the last one has imported what it needs.

    On a busy machine that takes seconds, in which the others would time out.
    """
    for process in processes:
        os.read(process.stdout.fileno(), 1)
    for process in processes:
        process.stdin.close()
        process.stdin = None


def result_of(name: str, where: tuple[str, str, int, int, float], arguments: dict[str, object]) -> object:
    """What a function of this file returns, or raises, on a rank that joins `where`: see `join`."""
    try:
        return globals()[name](join(*where), **arguments)
    except Exception as error:
        return error


def answer(pipe: Connection, *asked: object) -> None:
    """`result_of` in a process that was forked; begins when it is told to."""
    pipe.send("there")
    pipe.recv()
    pipe.send(result_of(*asked))


def main() -> None:
    transport, meeting, rank, world_size, timeout, name, arguments = sys.argv[1:]
    out = os.fdopen(os.dup(1), "wb")
    out.write(b"r")
    out.flush()
    sys.stdin.buffer.read()  # until begin_together
    where = transport, meeting, int(rank), int(world_size), float(timeout)
    with out:
        pickle.dump(result_of(name, where, json.loads(arguments)), out)


if __name__ == "__main__":
    main()
