"""Tensors that do not lie in row-major order: every op gives what contiguous copies give, and writes where they lie."""

from __future__ import annotations

import numpy as np
import pytest

import fusionkit as fk
from fusionkit import parity
from tests.op_names import LOCAL_CPU_OPS

VIEWS = {
    "every second row": lambda a: np.repeat(a, 2, axis=0)[::2],
    "reversed": lambda a: a[::-1].copy()[::-1],
    "reversed columns": lambda a: a[..., ::-1].copy()[..., ::-1],
    "column slice": lambda a: np.concatenate([a, a], axis=-1)[..., : a.shape[-1]],
    "strided columns": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "transposed": lambda a: np.ascontiguousarray(np.swapaxes(a, 0, a.ndim - 1)).swapaxes(0, a.ndim - 1),
    "fortran": np.asfortranarray,
}
CONTIGUOUS_ONLY = {"fused_adamw"}  # elementwise over memory that the optimizer owns
INDICES = {"position_ids", "startend_row_indices", "attn_mask", "block_tables", "labels"}


def case_with(spec, name):
    """A small case that gives this input, with more than one element along each of its axes if there is one."""
    given = [case for case in spec.cases if not case.llama and name in arguments_of(spec, case)]
    return max(given, key=lambda case: min(min(arguments_of(spec, case)[name].shape), 2))


def arguments_of(spec, case, dtype="float32"):
    arguments = parity.arguments_of(spec, case, dtype)
    return {name: value for name, value in arguments.items() if value is not None}


def results(op, arguments):
    """Outputs, what was written in place, and gradients."""
    with fk.use_backend("cpu"):
        out = op(**arguments)
        written = (arguments[name] for name in op.spec.mutates if name in arguments)
        found = [*(out if isinstance(out, tuple) else (out,)), *written]
        if op.spec.reference_vjp is not None:
            grads = tuple(np.ones_like(each) for each in found)
            floating = grads if isinstance(out, tuple) else grads[0]
            found += [grad for grad in op.vjp(**arguments, grad_outputs=floating).values() if grad is not None]
    return found


def compare(op, case, dtype, chosen, view):
    def laid_out(convert):
        made = arguments_of(op.spec, case, dtype)
        return {k: convert(v) if isinstance(v, np.ndarray) and chosen(k) else v for k, v in made.items()}

    want, got = (results(op, laid_out(convert)) for convert in (np.copy, view))
    for w, g in zip(want, got, strict=True):
        # paged_attention packs a cache whose last axis is strided, where it reads a dense one in place.
        tolerance = 1e-6 if op.spec.mutates and dtype == "float32" else 0
        np.testing.assert_allclose(*(np.asarray(x, np.float64) for x in (g, w)), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("name", [name for name in LOCAL_CPU_OPS if name not in CONTIGUOUS_ONLY])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_inputs_strided_give_the_bits_of_contiguous_ones(name, dtype, view):
    op = getattr(fk, name)
    compare(op, case_with(op.spec, op.spec.inputs[-1].name), dtype, lambda argument: True, view)


def index_inputs():
    for name in LOCAL_CPU_OPS:
        for declared in getattr(fk, name).spec.inputs:
            if declared.name in INDICES or declared.name.startswith("seq_lens"):
                yield pytest.param(name, declared.name, id=f"{name}-{declared.name}")


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
@pytest.mark.parametrize("name, argument", list(index_inputs()))
def test_each_index_mask_and_length_is_read_where_it_lies(name, argument, view):
    op = getattr(fk, name)
    compare(op, case_with(op.spec, argument), "float32", lambda each: each == argument, view)


def test_every_declared_integer_input_is_among_those_tested():
    tested = {param.values for param in index_inputs()}
    for name in LOCAL_CPU_OPS:
        for declared in getattr(fk, name).spec.inputs:
            if {"int32", "int64", "bool"} & set(declared.dtypes):
                assert (name, declared.name) in tested


PAGED = {
    "seq_lens_encoder": np.array([3, 3], np.int32),
    "seq_lens_decoder": np.array([0, 0], np.int32),
    "seq_lens_this_time": np.array([3, 3], np.int32),
    "block_tables": np.array([[0, 1], [2, 3]], np.int32),
}


def paged(cache=lambda cache: cache, **indices):
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((6, 2, 8)).astype(np.float32) for _ in range(3))
    caches = [cache(np.zeros((4, 2, 2, 8), np.float32)) for _ in range(2)]
    return fk.paged_attention(q, k, v, *caches, **(PAGED | indices)), *caches


@pytest.mark.parametrize("name", [name for name in PAGED if name != "block_tables"])
def test_one_length_broadcast_to_all_rows(name):
    """Stride 0."""
    indices = {name: np.broadcast_to(PAGED[name][:1], (2,))}
    for want, got in zip(paged(), paged(**indices), strict=True):
        np.testing.assert_array_equal(want, got)


def test_a_cache_that_is_a_part_of_a_larger_one_is_written_there():
    whole = np.tile(np.array([7, 0], np.float32), (4, 2, 2, 8))
    _, _, want = paged()
    paged(cache=lambda cache: whole[..., ::-2])
    np.testing.assert_array_equal(whole[..., ::-2], want)
    assert (whole[..., ::2] == 7).all()


def test_a_cache_whose_elements_share_memory_is_refused():
    one = np.zeros((1, 2, 2, 8), np.float32)
    shared = np.lib.stride_tricks.as_strided(one, (4, 2, 2, 8), (0, *one.strides[1:]))
    with pytest.raises(ValueError, match="key_cache must be of elements that each have their own memory"):
        paged(cache=lambda cache: shared[:])


@pytest.mark.parametrize("remembered", [False, True], ids=["first", "later"])
@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("op, name", [(op, name) for op in LOCAL_CPU_OPS for name in getattr(fk, op).spec.mutates])
def test_a_read_only_array_that_would_be_written_is_refused_by_name(op, name, backend, remembered):
    op = fk.Op(op)
    arguments = {
        each: np.copy(value) if isinstance(value, np.ndarray) else value
        for each, value in arguments_of(op.spec, case_with(op.spec, name)).items()
    }
    if remembered:
        with fk.use_backend(backend):
            op(**arguments)
    before = {each: arguments[each].copy() for each in op.spec.mutates if each in arguments}
    arguments[name].setflags(write=False)
    with fk.use_backend(backend), pytest.raises(ValueError, match=f"{name} must be writable, as it is updated"):
        op(**arguments)
    for each, value in before.items():
        np.testing.assert_array_equal(arguments[each], value)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("name", PAGED)
def test_a_foreign_byte_order_is_refused_by_name(name, backend):
    swapped = {name: PAGED[name].astype(">i4")}
    with fk.use_backend(backend), pytest.raises(ValueError, match=f"{name} must be of dtype int32, got >i4. Cast it"):
        paged(**swapped)


@pytest.mark.parametrize("name", ["param", "grad", "moment1", "moment2"])
def test_the_optimizer_refuses_a_strided_array_by_name(name):
    arrays = {each: np.zeros(8, np.float32) for each in ("param", "grad", "moment1", "moment2")}
    arrays[name] = np.zeros(16, np.float32)[::2]
    case = next(case for case in fk.fused_adamw.spec.cases if not case.llama)
    scalars = {k: v for k, v in parity.arguments_of(fk.fused_adamw.spec, case, "float32").items() if k not in arrays}
    with fk.use_backend("cpu"), pytest.raises(ValueError, match=f"fused_adamw: {name} must be contiguous"):
        fk.fused_adamw(**arrays, **scalars)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
@pytest.mark.parametrize("layout", ["transposed", "every second", "sliced"])
@pytest.mark.parametrize("name", PAGED)
def test_paddle_reads_strided_indices(name, layout, backend):
    paddle = pytest.importorskip("paddle")

    def strided(array):
        if layout == "transposed":
            return paddle.to_tensor(array.T.copy()).t() if array.ndim == 2 else paddle.to_tensor(array)
        if layout == "every second":
            return paddle.to_tensor(np.repeat(array, 2, axis=-1))[..., ::2]
        return paddle.to_tensor(np.concatenate([array, array - 9], axis=-1))[..., : array.shape[-1]]

    def run(convert):
        rng = np.random.default_rng(0)
        q, k, v = (paddle.to_tensor(rng.standard_normal((6, 2, 8)).astype(np.float32)) for _ in range(3))
        caches = [paddle.zeros([4, 2, 2, 8]) for _ in range(2)]
        indices = {each: convert(a) if each == name else paddle.to_tensor(a) for each, a in PAGED.items()}
        with fk.use_backend(backend):
            return [each.numpy() for each in (fk.paged_attention(q, k, v, *caches, **indices), *caches)]

    for want, got in zip(run(paddle.to_tensor), run(strided), strict=True):
        np.testing.assert_array_equal(want, got)


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_paddle_writes_a_strided_cache_where_it_lies_or_refuses_it(backend):
    paddle = pytest.importorskip("paddle")
    _, want, _ = paged()
    whole = paddle.zeros([2, 4, 2, 8])
    caches = [whole.transpose([1, 0, 2, 3]), paddle.zeros([4, 2, 2, 8])]
    assert not caches[0].is_contiguous()
    rng = np.random.default_rng(0)
    tokens = [paddle.to_tensor(rng.standard_normal((6, 2, 8)).astype(np.float32)) for _ in range(3)]
    indices = {name: paddle.to_tensor(array) for name, array in PAGED.items()}
    with fk.use_backend(backend):
        if backend == "cpu":
            with pytest.raises(ValueError, match="key_cache must be contiguous"):
                fk.paged_attention(*tokens, *caches, **indices)
            return
        fk.paged_attention(*tokens, *caches, **indices)
    np.testing.assert_array_equal(whole.transpose([1, 0, 2, 3]).numpy(), want)
