"""npu's kernels of the products fused with collectives, through fk.<op> between emulated devices, against float64.

python -m paddle.distributed.launch --log_dir output/log tests/emulator/matmul_collective_kernels.py, on 2, 4 or 8
devices. Prints as JSON how many checks this device passed. A process has one communication domain, so each world size
is a launch of its own.
"""

from __future__ import annotations

import functools
import json

import numpy as np
import paddle
import paddle.distributed as dist
import pytest
from fusionkit_backends.npu import all_gather_matmul as gather_kernel
from fusionkit_backends.npu import matmul_reduce_scatter as scatter_kernel

import fusionkit as fk
from fusionkit import arguments, comparison, frameworks, kernel_function, oracle, parity, registry
from fusionkit.errors import NoBackendError
from fusionkit.parallel import ColumnSequenceParallelLinear, RowSequenceParallelLinear
from fusionkit.shards import case
from fusionkit.spec import GroupSpec, TensorSpec
from tests.boundaries import edges

PADDLE = frameworks.load("paddle")
SIXTEEN_BITS = ("float16", "bfloat16")
ROWS, IN, OUT = 3, 264, 272
checked = 0


def done(condition=True):
    global checked
    assert condition
    checked += 1


class Ranks:
    """This process among the ranks of one group."""

    def __init__(self):
        dist.init_parallel_env()
        self.rank, self.world_size, self.device = dist.get_rank(), dist.get_world_size(), paddle.get_device()
        self.group = dist.new_group(list(range(self.world_size)))

    def worst(self, op, made, training=True):
        """The largest error of this rank's outputs and gradients as a share of its bound."""
        spec, own = op.spec, arguments.of_rank(op.spec, made, self.rank)
        call = {**own, "group": self.group}
        waiting = functools.partial(waited, op) if made.get("defer") else op
        if training:
            got = PADDLE.carried(waiting, self.device)(**call)
        else:
            with paddle.no_grad():
                got = PADDLE.carried(waiting, self.device)(**call)
        wants = self.references(spec, made, spec.tolerance.forward, oracle.reference)
        compared = comparison.compare_results(spec, own, *(want[self.rank] for want in wants), got)
        if training:
            grads = [comparison.grad_outputs(spec, got, rank) for rank in range(self.world_size)]
            gradients = PADDLE.vjp(waiting, spec, grads[self.rank], self.device, call)
            wants = self.references(spec, made, spec.tolerance.backward, oracle.reference_vjp, grads)
            own_wants = ({name: each[self.rank] for name, each in want.items()} for want in wants)
            compared += comparison.compare_each_gradient(spec, own, *own_wants, gradients)
        return max(each.share for each in compared)

    def references(self, spec, made, bound, reference, *grads):
        """In float64, and its composition in x's dtype."""
        exact = reference(spec, made, *grads)
        composed = functools.partial(reference, spec, made, *grads)
        return exact, comparison.composition(bound, made["x"][0].dtype.name, composed, exact)

    def ran(self, op, backend, reason, made, training=True, times=None):
        """By the ledger, with that reason, and right: forward, and forward with backward."""
        before = fk.ledger().get((op.__name__, backend, reason), 0)
        share = self.worst(op, made, training)
        entries = {entry: count for entry, count in fk.ledger().items() if entry[0] == op.__name__}
        assert fk.ledger().get((op.__name__, backend, reason), 0) - before == (times or 1 + training), entries
        done(share <= 1)


def waited(op, *args, **kwargs):
    return op(*args, **kwargs).wait()


def made(op, dtype, world_size, *x_shape, n=OUT, **values):
    return parity.arguments_of(op.spec, case(world_size, *x_shape, n=n, **values), dtype)


def calls(world_size):
    """(op, shape of x, what else): every argument, a float32 master weight, x with more axes."""
    whole = ROWS * world_size
    return [
        (fk.all_gather_matmul, (ROWS, IN), {}),
        (fk.all_gather_matmul, (ROWS, IN), {"save_gathered": False}),
        (fk.all_gather_matmul, (ROWS, IN), {"return_gathered": True}),
        (fk.all_gather_matmul, (ROWS, IN), {"keep_float32": ("weight",)}),
        (fk.matmul_reduce_scatter, (whole, IN), {}),
        (fk.matmul_reduce_scatter, (whole, IN), {"keep_float32": ("weight",)}),
        (fk.matmul_all_reduce, (ROWS, IN), {}),
        (fk.matmul_all_reduce, (2, ROWS, 2, 40), {"keep_float32": ("weight",)}),
        (fk.matmul_all_reduce, (ROWS, IN), {"defer": True}),
    ]


def kernels_agree(ranks):
    for dtype in SIXTEEN_BITS:
        for op, x_shape, values in calls(ranks.world_size):
            call = made(op, dtype, ranks.world_size, *x_shape, **values)
            ranks.ran(op, "npu", "chosen", call)
            ranks.ran(op, "npu", "chosen", call, training=False)
    for op in (fk.all_gather_matmul, fk.matmul_reduce_scatter, fk.matmul_all_reduce):
        ranks.ran(op, "npu", "chosen", made(op, "float16", ranks.world_size, 0, IN))


def limits_send_calls_to_eager(ranks):
    """With the reason; a strict wish is refused with the same one."""
    for op, x_shape, _ in [calls(ranks.world_size)[index] for index in (0, 4, 6)]:
        broken = [("float32", IN, OUT, "x.dtype must be bfloat16 or float16, got float32")]
        if op is not fk.matmul_all_reduce:
            broken += [
                ("float16", 255, OUT, "in_features must be in [256, 65535), got 255"),
                ("float16", IN, 255, "out_features must be in [256, 65535), got 255"),
            ]
        for dtype, k, n, reason in broken:
            call = made(op, dtype, ranks.world_size, x_shape[0], k, n=n)
            # Without gradients out_features is no limit, and npu runs.
            ranks.ran(op, "eager", f"fallback: npu: {reason}", call, times=1 if n == 255 else 2)
            with fk.use_backend("npu"), pytest.raises(NoBackendError) as refusal:
                ranks.worst(op, call)
            done(reason in str(refusal.value))


def bias_is_added_once(ranks):
    """Outside: each rank holds its rows of y, and the bias's gradient is the sum over them."""
    call = made(fk.matmul_reduce_scatter, "bfloat16", ranks.world_size, ROWS * ranks.world_size, IN)
    own = arguments.of_rank(fk.matmul_reduce_scatter.spec, call, ranks.rank)
    x, weight = (PADDLE.over_tensors(own[name], ranks.device) for name in ("x", "weight"))
    bias = paddle.ones([OUT], "bfloat16")
    bias.stop_gradient = False
    plain = fk.matmul_reduce_scatter(x, weight, group=ranks.group)
    biased = plain + bias
    biased.sum().backward()
    assert np.array_equal(biased.astype("float32").numpy(), (plain + 1).astype("float32").numpy())
    done(np.array_equal(bias.grad.astype("float32").numpy(), np.full(OUT, ROWS, np.float32)))


def only_the_wanted_gradients_are_computed(ranks):
    """A frozen weight, and an x that needs no gradient: on all ranks, so that they make the same calls."""
    for op, x_shape, values in calls(ranks.world_size)[:8]:
        for frozen in ("x", "weight"):
            own = arguments.of_rank(op.spec, made(op, "float16", ranks.world_size, *x_shape, **values), ranks.rank)
            own |= {name: PADDLE.over_tensors(own[name], ranks.device) for name in ("x", "weight")}
            for name in ("x", "weight"):
                own[name].stop_gradient = name == frozen
            outputs = comparison.listed(op(**{**own, "group": ranks.group}))
            outputs[0].sum().backward()
            done(own[frozen].grad is None and all(own[name].grad is not None for name in {"x", "weight"} - {frozen}))


def edges_agree(ranks):
    """Both sides of every declared limit: inside npu runs, outside the vendor's op refuses what it is given."""
    npu = next(backend for backend in registry.loaded() if backend.name == "npu")
    groups = {size: dist.new_group(list(range(size))) for size in (3, 5, 7) if size < ranks.world_size}
    for edge in edges(npu):
        op, world_size = fk.Op(edge.op), edge.arguments.get("group", GroupSpec(0)).world_size
        if not op.spec.collective:
            continue
        if (
            edge.accepted
            and world_size == ranks.world_size
            and (world_size == 2 or "world_size" in str(edge.predicate))
        ):
            call = from_edge(op, edge, world_size, repeated_normal)
            with fk.use_backend("npu"):
                done(ranks.worst(op, call, edge.training) <= 1)
        elif not edge.accepted:
            group = ranks.group if world_size == ranks.world_size == 2 else groups.get(world_size)
            if group is not None and group.rank >= 0:
                vendor_refuses(op, npu, edge, group, ranks)


def repeated_normal(shape):
    """65534 x 256 new random numbers would take as long as the check."""
    return np.resize(np.random.default_rng(5).standard_normal(4099), shape)


def from_edge(op, edge, world_size, draw=None):
    """The edge's call for all ranks. A limit on the depth alone is met with few columns: float64 takes its time."""
    call = dict(edge.arguments)
    for name, value in edge.arguments.items():
        if isinstance(value, TensorSpec):
            shape = (value.shape[0], 8) if name == "weight" and not edge.training else value.shape
            dtype = frameworks.numpy.DTYPES[value.dtype]
            call[name] = [draw(shape).astype(dtype) if draw else np.zeros(shape, dtype) for _ in range(world_size)]
    return call


def vendor_refuses(op, npu, edge, group, ranks):
    function = kernel_function.resolve(npu.kernels[edge.op].functions["paddle"])
    own = arguments.of_rank(op.spec, from_edge(op, edge, group.nranks), group.rank)
    tensors = {name: PADDLE.over_tensors(own[name], ranks.device) for name in ("x", "weight")}
    for each in tensors.values():
        each.stop_gradient = not edge.training
    with pytest.raises((ValueError, OSError), match=r"must be .*, got .*\(emulated npu\)"):
        output = function(**{**own, **tensors, "group": group})
        assert edge.training  # else the vendor has taken what the declaration refuses
        output.sum().backward()
    done()


def mistakes_are_found(ranks):
    """The comparison above fails where ranks are mixed up in a backward pass, and where a kernel gives zeros."""
    swapped = planted(scatter_kernel, "gather_and_multiply", lambda out: [out[0].flip(0), out[1]])
    resent = planted(gather_kernel, "multiply_and_scatter", lambda dx: dx.flip(0))
    zeros = planted(gather_kernel, "gather_and_multiply", lambda out: [out[0] * 0, out[1]])
    reversed_again = planted(gather_kernel.collectives, "gathered", lambda rows: rows.flip(0))
    scatter, gather, again = (calls(ranks.world_size)[index] for index in (4, 0, 1))
    for mistake, (op, x_shape, values) in (
        (swapped, scatter),
        (resent, gather),
        (zeros, gather),
        (reversed_again, again),
    ):
        call = made(op, "bfloat16", ranks.world_size, *x_shape, **values)
        with mistake:
            done(ranks.worst(op, call) > 1)
        done(ranks.worst(op, call) <= 1)


def planted(module, name, change):
    right = getattr(module, name)
    patch = pytest.MonkeyPatch.context()

    class Planted:
        def __enter__(self):
            patch.__enter__().setattr(module, name, lambda *args, **kwargs: change(right(*args, **kwargs)))

        def __exit__(self, *exception):
            patch.__exit__(*exception)

    return Planted()


def parallel_layers_call_them(ranks):
    """Two layers with sequence parallelism: npu's kernels by the ledger, results as with eager's."""
    up = ColumnSequenceParallelLinear(256, 512, gather_output=False, has_bias=False, mp_group=ranks.group)
    down = RowSequenceParallelLinear(512, 256, input_is_parallel=True, has_bias=False, mp_group=ranks.group)
    for layer in (up, down):
        layer.to(dtype="bfloat16")
    rows = np.random.default_rng(ranks.rank).standard_normal((ROWS, 256)).astype("float32")
    results = {}
    for backend in ("npu", "eager"):
        x = paddle.to_tensor(rows).astype("bfloat16")
        x.stop_gradient = False
        before = dict(fk.ledger())
        with fk.use_backend({"all_gather_matmul": backend, "matmul_reduce_scatter": backend}):
            y = down(up(x))
            y.sum().backward()
        for op in ("all_gather_matmul", "matmul_reduce_scatter"):
            entry = (op, backend, "chosen")
            done(fk.ledger()[entry] > before.get(entry, 0))
        results[backend] = [each.astype("float32").numpy() for each in (y, x.grad, up.weight.grad, down.weight.grad)]
        for layer in (up, down):
            layer.clear_gradients()
    for got, wanted in zip(results["npu"], results["eager"], strict=True):
        done(np.abs(got - wanted).max() <= 4 * 2.0**-8 * np.abs(wanted).max() > 0)


def a_second_group_runs_on_eager(ranks):
    """A card has one communication domain for the vendor's fused products."""
    second = dist.new_group(list(range(ranks.world_size)))
    first, ranks.group = ranks.group, second
    call = made(fk.matmul_all_reduce, "bfloat16", ranks.world_size, ROWS, IN)
    entry = f"given them group {first.id}, got group {second.id}"
    done(ranks.worst(fk.matmul_all_reduce, call) <= 1)
    done(any(key[:2] == ("matmul_all_reduce", "eager") and entry in key[2] for key in fk.ledger()))
    with fk.use_backend("npu"), pytest.raises(NoBackendError, match=entry):
        ranks.worst(fk.matmul_all_reduce, call)
    ranks.group = first
    ranks.ran(fk.matmul_all_reduce, "npu", "chosen", call)


if __name__ == "__main__":
    mine = Ranks()
    kernels_agree(mine)
    limits_send_calls_to_eager(mine)
    if mine.world_size == 2:
        bias_is_added_once(mine)
        only_the_wanted_gradients_are_computed(mine)
        mistakes_are_found(mine)
        parallel_layers_call_them(mine)
        a_second_group_runs_on_eager(mine)
    edges_agree(mine)
    print(json.dumps({"device": mine.device, "checked": checked}), flush=True)
