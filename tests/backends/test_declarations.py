"""What npu, gcu, xpu and gpu declare: verdicts on both sides of every limit, reasons, gaps, how far they are proven."""

from __future__ import annotations

import pytest

import fusionkit as fk
from fusionkit import registry, select
from fusionkit.spec import GroupSpec, TensorSpec
from tests.boundaries import edges, is_of_the_arguments

VENDORS = ("gcu", "gpu", "npu", "xpu")
BACKENDS = {backend.name: backend for backend in registry.loaded()}
EDGES = [edge for name in VENDORS for edge in edges(BACKENDS[name])]


@pytest.mark.parametrize("edge", EDGES, ids=str)
def test_a_limit_is_told_apart_from_one_step_beyond_it(edge):
    op = fk.Op(edge.op)
    try:
        explanation = op.explain(**edge.arguments, training=edge.training)
    except ValueError:
        assert not edge.accepted, "the op itself refuses what the backend would take"
        return
    answers = {name: (answer, reasons) for name, answer, reasons in explanation.candidates}
    answer, reasons = answers[edge.backend]
    assert answer == ("yes" if edge.accepted else "no"), reasons
    other = None if edge.training and op.spec.reference_vjp is None else "eager"  # which trains no op for inference
    assert explanation.chosen == (edge.backend if edge.accepted else other)


def test_every_predicate_has_both_sides():
    for name in VENDORS:
        for op, kernel in BACKENDS[name].kernels.items():
            for predicate in filter(is_of_the_arguments, select.conditions(kernel, op)[1:]):  # the first: any dtype
                sides = {e.accepted for e in EDGES if (e.backend, e.op) == (name, op) and e.predicate is predicate}
                assert sides == {True, False}, (name, op, str(predicate))


def attention(device, dtype="bfloat16", **kwargs):
    q, k = TensorSpec((2, 5, 4, 64), dtype, device), TensorSpec((2, 5, 2, 64), dtype, device)
    made = {name: TensorSpec(*value, device) if isinstance(value, tuple) else value for name, value in kwargs.items()}
    return fk.flash_attention, {"q": q, "k": k, "v": k, **made}


def rope(device, head_dim=64, **kwargs):
    q, k = TensorSpec((2, 5, 4, head_dim), "bfloat16", device), TensorSpec((2, 5, 2, head_dim), "bfloat16", device)
    table = TensorSpec((9, head_dim // 2), "float32", device)
    return fk.fusion_rope, {"q": q, "k": k, "cos": table, "sin": table, **kwargs}


def norm(device, dtype="float32"):
    x, weight = TensorSpec((3, 64), dtype, device), TensorSpec((64,), dtype, device)
    return fk.fusion_rms_norm, {"x": x, "weight": weight}


def add_norm(device, **dtypes):
    x, residual = (TensorSpec((3, 64), dtypes.get(name, "float16"), device) for name in ("x", "residual"))
    weight = TensorSpec((64,), dtypes.get("weight", "float16"), device)
    return fk.fusion_add_rms_norm, {"x": x, "residual": residual, "weight": weight}


def product(op, device="npu:0", dtype="bfloat16", rows=8, k=256, n=256, world_size=2):
    x, weight = TensorSpec((rows, k), dtype, device), TensorSpec((k, n), dtype, device)
    return op, {"x": x, "weight": weight, "group": GroupSpec(world_size)}


COLLECTIVES = (fk.all_gather_matmul, fk.matmul_reduce_scatter, fk.matmul_all_reduce)
DEPTH_OF = {"k": "in_features", "n": "out_features"}

REFUSALS = [
    ("npu", attention("npu:0", "float32"), {}, "q.dtype must be bfloat16 or float16, got float32"),
    ("npu", attention("npu:0", scale=0.3), {}, "scale must be 1 / sqrt(head_dim), got 0.3"),
    ("npu", attention("npu:0", attn_mask=((2, 1, 5, 5), "float32")), {}, "attn_mask.dtype must be bool, got float32"),
    ("npu", attention("npu:0", attn_mask=((2, 4, 5, 5), "bool")), {}, "attn_mask.num_heads must be 1, got 4"),
    (
        "npu",
        attention("npu:0", startend_row_indices=((2, 2, 5, 2), "int32")),
        {},
        "startend_row_indices.num_key_value_heads must be 1, got 2",
    ),
    *(
        (
            device,
            attention(f"{device}:0", dtype, return_lse=True),
            {},
            "return_lse is not supported: it must be False, got True",
        )
        for device, dtype in (("npu", "bfloat16"), ("gcu", "float16"), ("xpu", "bfloat16"), ("gpu", "bfloat16"))
    ),
    ("npu", rope("npu:0", 96), {}, "head_dim must be a multiple of 64, got 96"),
    ("npu", rope("npu:0", interleaved=True), {}, "interleaved is not supported: it must be False, got True"),
    ("gcu", attention("gcu:0"), {}, "q.dtype must be float16, got bfloat16"),
    ("gcu", norm("gcu:0"), {"training": True}, "forward only: gradients are wanted"),
    ("gcu", rope("gcu:0"), {"training": True}, "forward only: gradients are wanted"),
    ("gcu", add_norm("gcu:0", weight="float32"), {}, "weight.dtype must be float16, got float32"),
    *(
        ("npu", product(op, dtype="float32"), {}, "x.dtype must be bfloat16 or float16, got float32")
        for op in COLLECTIVES
    ),
    *(("npu", product(op, rows=9, world_size=3), {}, "world_size must be 2, 4 or 8, got 3") for op in COLLECTIVES),
    *(
        (
            "npu",
            product(op, **{side: size}),
            {"training": True},
            f"{DEPTH_OF[side]} must be in [256, 65535), got {size}",
        )
        for op in COLLECTIVES[:2]
        for side in "kn"
        for size in (255, 65535)
    ),
    ("gpu", attention("gpu:0", "float32"), {}, "q.dtype must be bfloat16 or float16, got float32"),
    ("xpu", attention("xpu:0", scale=0.3), {}, "scale must be 1 / sqrt(head_dim), got 0.3"),
]


@pytest.mark.parametrize("backend, call, asked, reason", REFUSALS, ids=[f"{r[0]}-{r[3]}" for r in REFUSALS])
def test_a_refusal_says_why(backend, call, asked, reason):
    op, arguments = call
    explanation = op.explain(**arguments, **asked)
    assert explanation.chosen == "eager"
    assert (backend, "no", (reason,)) in explanation.candidates
    assert explanation.reason == f"fallback: {backend}: {reason}"


@pytest.mark.parametrize(
    "call",
    [
        attention("npu:0", causal=True),
        attention("npu:0", causal=True, attn_mask=((1, 1, 5, 5), "bool")),
        attention("npu:0", startend_row_indices=((2, 1, 5, 2), "int32")),
        rope("npu:0", position_ids=TensorSpec((2, 5), "int32", "npu:0")),
        norm("npu:0", "bfloat16"),
        *(product(op) for op in COLLECTIVES),
        product(fk.matmul_all_reduce, k=1, n=1),
        attention("gpu:0", causal=True),
        attention("xpu:0", causal=True),
    ],
    ids=lambda call: "-".join([call[0].__name__, *call[1]]),
)
def test_what_adapters_make_up_for_is_accepted_in_training(call):
    op, arguments = call
    device = next(iter(arguments.values())).device.partition(":")[0]
    assert op.explain(**arguments, training=True).chosen == device


@pytest.mark.parametrize("op", COLLECTIVES[:2], ids=lambda op: op.__name__)
def test_the_width_of_the_result_is_a_limit_of_the_backward_pass_only(op):
    """There it is the depth of the product that gives dx."""
    _, arguments = product(op, n=16)
    assert op.explain(**arguments, training=False).chosen == "npu"
    assert op.explain(**arguments, training=True).chosen == "eager"


def test_what_the_fused_products_do_not_promise_is_said():
    for op in COLLECTIVES:
        _, arguments = product(op)
        arguments["weight"] = TensorSpec((256, 256), "float32", "npu:0")
        (said,) = [reasons for name, _, reasons in op.explain(**arguments, training=True).candidates if name == "npu"]
        text = "; ".join(said)
        assert "8.0.RC2" in text and "not deterministic" in text and "float32 product" in text
    assert "nothing of it hides" in str(op.explain(**arguments, defer=True, training=False))


def test_gaps_run_on_eager_with_the_reason_and_are_no_fallback():
    gate = TensorSpec((3, 8), "bfloat16", "npu:0")
    assert fk.swiglu.explain(gate, gate).reason == "not offered: npu: npu does not have swiglu"
    tokens, cache = TensorSpec((2, 4, 64), "float16", "npu:0"), TensorSpec((3, 2, 16, 64), "float16", "npu:0")
    keys, row = TensorSpec((2, 2, 64), "float16", "npu:0"), TensorSpec((1,), "int32", "npu:0")
    table = TensorSpec((1, 3), "int32", "npu:0")
    lengths = dict.fromkeys(("seq_lens_encoder", "seq_lens_decoder", "seq_lens_this_time"), row)
    gap = fk.paged_attention.explain(tokens, keys, keys, cache, cache, block_tables=table, **lengths)
    assert gap.chosen == "eager" and gap.reason.startswith("not offered: npu: npu does not have paged_attention: ")
    assert "fused_blha_layer_op" in gap.reason


@pytest.mark.parametrize("name", VENDORS)
def test_what_ran_on_no_card_says_so(name):
    words = "emulated" if name in ("npu", "gcu") else "not run"
    op, arguments = norm(f"{name}:0")
    (reasons,) = [reasons for backend, answer, reasons in op.explain(**arguments).candidates if backend == name]
    assert reasons[0] == words
    status = next(status for status in fk.backends() if status.name == name)
    assert f": {words}; " in str(status)
