"""fused_linear_cross_entropy: the spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fusionkit.call import Call
from fusionkit.dtypes import FLOATING, INTEGER
from fusionkit.spec import (
    Array,
    Benchmark,
    Case,
    Cost,
    Epsilons,
    GroupSpec,
    Input,
    InvalidCase,
    OpSpec,
    Output,
    Rounding,
    Tolerance,
    exact,
)
from fusionkit.world_size import bind_world_size


def fused_linear_cross_entropy(x: Any, weight: Any, labels: Any, *, ignore_index: int = -100, group: Any = None) -> Any:
    """Cross entropy of a linear layer's logits, without holding the logits whole.

        logits = x @ weight
        loss_sum = sum over tokens with labels != ignore_index of logsumexp(logits) - logits[label]
        num_tokens = count of those tokens

    Args:
        x: [..., hidden_size], float32 / bfloat16 / float16: hidden states.
        weight: [hidden_size, vocab_size], dtype of x, or float32: a float32 weight is rounded to x's dtype for the
            products, while its gradient stays float32.
        labels: [...], int32 / int64, each in [0, vocab_size) or ignore_index. Not differentiated.
        ignore_index: the label of tokens that do not count.
        group: a Paddle group, or a `fusionkit.parallel.Communicator`, whose ranks divide the vocabulary and all make
            this call. None: the vocabulary is whole.

    Returns:
        loss_sum: [], float32. Logits and their logarithms are float32; the gradient flows through it alone.
        num_tokens: [], int64. The mean loss is loss_sum / num_tokens, taken by the caller over the global batch.

    With a group, weight is sharded on its second axis. Rank 0 has the first entries of the vocabulary, rank 1 the next.
    Their numbers may differ, and each rank has one at least. So a vocabulary of any size needs no padding, whose logits
    would count. x and labels are replicated, and labels count in the whole vocabulary. The results are replicated: the
    same bits on all ranks. Three numbers a token and rank are sent, and the logits are not.

    The gradient of weight is that of this rank's entries. The gradient of x is this rank's part: the sum over ranks is
    the gradient. Take x from `fusionkit.parallel.collectives.identity`, whose gradient is that sum on all ranks, or
    under sequence parallelism from its `all_gather`, whose gradient is this rank's rows of it.

    Raises:
        ValueError: a label is neither ignore_index nor in [0, vocab_size), or a shape or dtype is not as above.
        CommunicatorError: a rank is dead, late, or makes another call.

    Source: Wijmans et al. 2024, arXiv:2411.09009 (the gradient is (softmax(logits) - onehot(labels)) W^T). With a
    group: Megatron-LM's vocabulary-parallel cross entropy, Shoeybi et al. 2019, arXiv:1909.08053, section 3.
    """


def kept_rows(x: Array, labels: Array, ignore_index: int) -> tuple[Array, Array, Array]:
    """The tokens that count: their place among all, their hidden states, their labels."""
    targets = labels.reshape(-1).astype(np.int64)
    kept = np.flatnonzero(targets != ignore_index)
    return kept, x.reshape(-1, x.shape[-1])[kept], targets[kept]


def log_probabilities(logits: Array) -> Array:
    """log(softmax(logits)), from differences of logits alone."""
    if logits.shape[0] == 0:
        return logits
    below = logits - np.max(logits, axis=-1, keepdims=True)
    return np.asarray(below - np.log(np.sum(np.exp(below), axis=-1, keepdims=True)))


def each_rank(x: Any, weight: Any, labels: Any, group: Any) -> tuple[list[Array], list[Array], Array]:
    """x and weight of the ranks, of which there is one without a group, and the labels that all have."""
    return ([x], [weight], labels) if group is None else (x, weight, labels[0])


def reference(
    x: Any,
    weight: Any,
    labels: Any,
    *,
    ignore_index: int = -100,
    group: Any = None,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> Any:
    x, weight, labels = each_rank(x, weight, labels, group)
    kept, _, targets = kept_rows(x[0], labels, ignore_index)
    rows = [kept_rows(each, labels, ignore_index)[1] for each in x]
    logits = np.concatenate([rounding(a @ operand(b)) for a, b in zip(rows, weight, strict=True)], axis=1)
    losses = -log_probabilities(logits)[np.arange(kept.size), targets]
    result = np.asarray(np.sum(losses)), np.asarray(kept.size, dtype=np.int64)
    return result if group is None else [result] * len(x)


def reference_vjp(
    grad_outputs: Any,
    x: Any,
    weight: Any,
    labels: Any,
    *,
    ignore_index: int = -100,
    group: Any = None,
    rounding: Rounding = exact,
    operand: Rounding = exact,
) -> dict[str, Any]:
    """The second of grad_outputs, for the count, is not read. Each rank multiplies its own columns."""
    dloss_sum = grad_outputs[0] if group is None else grad_outputs[0][0]
    x, weight, labels = each_rank(x, weight, labels, group)
    kept, rows, targets = kept_rows(x[0], labels, ignore_index)
    dlogits = np.exp(log_probabilities(np.concatenate([rounding(rows @ operand(each)) for each in weight], axis=1)))
    dlogits[np.arange(kept.size), targets] -= 1.0
    dlogits = rounding(dlogits)

    def multiplied(own: Array, columns: Array) -> tuple[Array, Array]:
        dx = np.zeros((labels.size, x[0].shape[-1]))
        dx[kept] = rounding(rounding(columns @ operand(own).T) * dloss_sum)
        return dx.reshape(x[0].shape), rounding(rounding(rows.T @ columns) * dloss_sum)

    ends = np.cumsum([own.shape[1] for own in weight])[:-1]
    dx, dweight = zip(*map(multiplied, weight, np.split(dlogits, ends, axis=1)), strict=True)
    return {"x": dx[0], "weight": dweight[0]} if group is None else {"x": list(dx), "weight": list(dweight)}


def case(
    *tokens: int,
    hidden: int,
    vocab: int,
    name: str = "",
    scale: float = 1.0,
    ignored: float = 0.0,
    ignore_index: int = -100,
    labels_dtype: str = "int64",
    keep_float32: tuple[str, ...] = (),
) -> Case:
    """`scale` is the logits' standard deviation, `ignored` the share of tokens that do not count."""

    def arguments(rng: np.random.Generator) -> dict[str, Any]:
        labels = rng.integers(0, vocab, tokens)
        labels = np.where(rng.random(tokens) < ignored, ignore_index, labels)
        return {
            "x": rng.standard_normal((*tokens, hidden)),
            "weight": scale * rng.standard_normal((hidden, vocab)) / np.sqrt(hidden),
            "labels": np.asarray(labels, dtype=labels_dtype),
            "ignore_index": ignore_index,
        }

    label = name or "x".join([*(f"T{size}" for size in tokens), f"H{hidden}", f"V{vocab}"])
    return Case(label, arguments, llama=hidden >= 4096, keep_float32=keep_float32)


def divided(made: Mapping[str, Any], widths: tuple[int, ...]) -> dict[str, Any]:
    """The call of one rank as that of ranks with so many entries of the vocabulary each."""
    world_size = len(widths)
    shards = np.split(made["weight"], np.cumsum(widths)[:-1], axis=1)
    replicated = {name: [made[name]] * world_size for name in ("x", "labels")}
    return {**made, **replicated, "weight": shards, "group": GroupSpec(world_size)}


def group_case(*widths: int, tokens: int = 9, hidden: int = 17, name: str = "", **how: Any) -> Case:
    alone = case(tokens, hidden=hidden, vocab=sum(widths), name=name, **how)
    label = "x".join([f"W{len(widths)}", f"T{tokens}", f"H{hidden}", f"V{'+'.join(map(str, widths))}"])
    sizes = f"{label}-{name}" if name else label
    return Case(sizes, lambda rng: divided(alone.arguments(rng), widths), alone.llama, alone.keep_float32)


def labels_at_the_edges(rng: np.random.Generator) -> dict[str, Any]:
    """The first and the last entry of each rank, one of which has a single entry; and a rank without any label."""
    widths = (5, 1, 16, 9)
    made = case(10, hidden=33, vocab=sum(widths)).arguments(rng)
    return divided({**made, "labels": np.array([0, 4, 5, 6, 21, 0, 4, 5, 6, 21])}, widths)


def far_from_zero(rng: np.random.Generator) -> dict[str, Any]:
    """Logits about 100 and -100, where exp leaves float32; small integers, so that they are exact in every dtype."""
    x, weight = rng.integers(-1, 2, (9, 16)), rng.integers(-3, 4, (16, 127))
    x[:, 0], weight[0] = np.where(np.arange(9) % 2, 100, -100), 1
    return {"x": x.astype(np.float64), "weight": weight.astype(np.float64), "labels": rng.integers(0, 127, 9)}


LABEL_RULE = r"labels must be in \[0, 5\) or ignore_index \(-100\)"


def invalid(name: str, match: str, error: type[Exception] = ValueError, **arguments: Any) -> InvalidCase:
    valid = {"x": np.ones((2, 8)), "weight": np.ones((8, 5)), "labels": np.array([0, 4])}
    return InvalidCase(name, lambda rng: {**valid, **arguments}, error, match)


def cost(dims: Mapping[str, Any], itemsize: int, training: bool) -> Cost:
    """The product alone, and with the backward two more: the logits stay where they are made. Labels are counted as
    int64."""
    tokens, hidden, vocab = dims["..."], dims["hidden_size"], dims["vocab_size"]
    operands = itemsize * hidden * (tokens + vocab)
    products = 3 if training else 1
    return Cost(products * 2.0 * tokens * hidden * vocab, operands + 8 * tokens, (operands if training else 0) + 12)


def check(call: Call) -> None:
    if call.values["group"] is None:
        return
    bind_world_size(call)
    size = call.dims["vocab_size"]
    advice = "Give each rank of the group a part of the vocabulary"
    call.require(size != 0, "weight", "[hidden_size, vocab_size] with vocab_size of at least 1", size, advice=advice)


spec = OpSpec(
    signature=fused_linear_cross_entropy,
    inputs=(
        Input("x", "... hidden_size", FLOATING),
        Input("weight", "hidden_size vocab_size", ("x", "float32")),
        Input("labels", "...", INTEGER, differentiable=False),
    ),
    outputs=(Output("loss_sum", "", "float32", replicated=True), Output("num_tokens", "", "int64")),
    reference=reference,
    reference_vjp=reference_vjp,
    cases=(
        *(case(7, hidden=size, vocab=size) for size in (15, 16, 17, 31, 33, 1)),
        case(1, hidden=1, vocab=2, scale=0.3),
        case(1, hidden=48, vocab=127),
        case(67, hidden=13, vocab=11),
        case(2, 5, hidden=16, vocab=97, name="B2xS5xH16xV97"),
        case(0, hidden=16, vocab=8, name="no-tokens"),
        case(23, hidden=17, vocab=31, name="some-ignored", ignored=0.4),
        case(6, hidden=17, vocab=31, name="all-ignored", ignored=1.1),
        case(23, hidden=17, vocab=31, name="class-0-ignored", ignored=0.2, ignore_index=0),
        case(9, hidden=17, vocab=31, name="int32-labels", labels_dtype="int32"),
        Case("large-logits", far_from_zero),
        case(9, hidden=33, vocab=65, name="float32-weight", ignored=0.2, keep_float32=("weight",)),
        case(7, hidden=5120, vocab=4000, name="T7xH5120xV4000"),
    ),
    group_cases=(
        group_case(16),
        group_case(8, 8),
        group_case(31, 33, tokens=67, ignored=0.3, name="some-ignored"),
        group_case(16, 1, 17, tokens=23, hidden=13),
        group_case(7, 9, 8, 9, ignored=0.2, keep_float32=("weight",), name="float32-weight"),
        group_case(5, 6, tokens=0, name="no-tokens"),
        group_case(5, 6, ignored=1.1, name="all-ignored"),
        group_case(9, 8, ignored=0.3, ignore_index=0, labels_dtype="int32", name="class-0-ignored"),
        Case("W4-labels-at-the-edges", labels_at_the_edges),
        Case("W2-large-logits", lambda rng: divided(far_from_zero(rng), (60, 67))),
        group_case(2000, 2000, tokens=7, hidden=5120),
    ),
    invalid_cases=(
        invalid("weight-hidden", r"weight must be .* with hidden_size = 8", weight=np.ones((7, 5))),
        invalid("weight-rank", r"weight must be \[hidden_size, vocab_size\]", weight=np.ones(8)),
        invalid("weight-none", "weight must be a tensor", TypeError, weight=None),
        invalid("x-integer", "x must be of dtype float32, bfloat16 or float16", x=np.ones((2, 8), dtype=np.int64)),
        invalid("labels-length", r"labels must be \[\.\.\.\]", labels=np.array([0, 1, 2])),
        invalid("labels-rank", r"labels must be \[\.\.\.\]", labels=np.array([[0], [1]])),
        invalid("labels-floating", "labels must be of dtype int32 or int64", labels=np.ones(2)),
        invalid("label-too-large", rf"{LABEL_RULE}, got 5", labels=np.array([0, 5])),
        invalid("label-negative", rf"{LABEL_RULE}, got -1", labels=np.array([-1, 0])),
        invalid("group-of-words", "group must be a Paddle group", TypeError, group="ranks"),
        invalid("group-number", "group must be a Paddle group", TypeError, group=2),
        invalid("no-columns", "vocab_size of at least 1, got 0", group=GroupSpec(2), weight=np.ones((8, 0))),
    ),
    tolerance=Tolerance(
        forward=Epsilons(
            {"float32": 16},
            "logits are float32 sums whose errors, up to 60 epsilons at hidden_size 5120, average over tokens and are "
            "judged against log(vocab_size) = 8 for each; 16-bit inputs change nothing: their products are exact.",
        ),
        backward=Epsilons(
            {"float32": 96, "bfloat16": 1.6, "float16": 1.6},
            "float32: the products' sums cost up to 54, measured at hidden_size 5120; softmax turns a logit's "
            "absolute error into a relative one, so at logits of 128 half an epsilon of the logarithm costs 64. 16 "
            "bits: softmax - onehot is rounded before the second products, their sums, and that times dloss_sum.",
            arithmetic={"weight": "x"},
        ),
    ),
    cost=cost,
    benchmarks=(
        Benchmark(case(2048, hidden=5120, vocab=32000), ("bfloat16",)),
        Benchmark(
            case(2048, hidden=5120, vocab=32000, name="T2048xH5120xV32000-float32-weight", keep_float32=("weight",)),
            ("bfloat16",),
        ),
    ),
    amp="low",
    source="Wijmans et al. 2024, arXiv:2411.09009",
    check=check,
    stored={"operand": "x"},
)
