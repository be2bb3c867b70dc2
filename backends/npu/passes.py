"""What becomes of a program of fusionkit's ops that is loaded for npu: one op a decoder layer, one for the head.

The steps have the names under which the vendor's users know them. They rewrite a copy of the program, and all layers
are rewritten or none. So no residual can be lost: after the first two steps every residual sum stands by itself, and a
layer is what lies between two values of the residual stream.
"""

from __future__ import annotations

import math

from fusionkit.passes.pattern import Match
from fusionkit.passes.program import Operation, Program
from fusionkit.passes.steps import Obstacle, Passes, Rule, Step

LAYER_OP = "npu.decoder_layer"
_ATTENTION, _PRODUCT = "fk.paged_attention", "fk.fused_linear"
_COLLECTIVES = ("all_reduce", "all_reduce_", "all_gather", "c_identity", "c_allreduce_sum", "mp_allreduce_sum")
_FUSED_COLLECTIVES = ("fk.matmul_all_reduce", "fk.matmul_reduce_scatter", "fk.all_gather_matmul")

_LAYER = """
    n = fk.fusion_rms_norm(x, norm) epsilon=epsilon
    qkv = fk.fused_linear(n, qkv_weight, qkv_bias?)
    q, k, v = split(qkv)
    q_turned, k_turned = fk.fusion_rope(q, k, cos, sin, positions) interleaved=interleaved
    a = fk.paged_attention(q_turned, k_turned, v, key_cache, value_cache, tables, encoder, decoder, this_time)
    o = fk.fused_linear(a, out_weight)
    s = add(o, x)
    m = fk.fusion_rms_norm(s, ffn_norm) epsilon=epsilon
    gate_up = fk.fused_linear(m, ffn1_weight)
    gate, up = split_with_num(gate_up)
    g = fk.swiglu(gate, up)
    d = fk.fused_linear(g, ffn2_weight)
    y = add(d, s)
"""
_ROWS = """
    h = fk.fusion_rms_norm(y, head_norm) epsilon=head_epsilon
    wide = cast(h) dtype='float32'
    rows = gather(wide, last)
    chosen = cast(rows) dtype='float16'
"""
_CONSTANTS = """
    norm_half = npu.half(norm)
    ffn_norm_half = npu.half(ffn_norm)
    angles = npu.angles(cos, sin) interleaved=interleaved
"""
_LAST = "with rows = gather(wide, last)"
_GUARD = "guard reason = npu.unlike_rows(this_time, encoder, decoder, last, positions)"
_NORM_OF_ROWS = "chosen = fk.fusion_rms_norm(y, head_norm) epsilon=head_epsilon"


def _layer(flag: int, x: str = "x", y: str = "y", zeros: bool = False) -> str:
    out, ffn2 = ("no_out", "no_ffn2") if zeros else ("out_weight", "ffn2_weight")
    inputs = f"{x}, this_time, encoder, decoder, tables, angles, key_cache, value_cache, norm_half, qkv_weight"
    weights = f"qkv_bias, {out}, ffn_norm_half, ffn1_weight, {ffn2}"
    attributes = f"flag={flag} epsilon=epsilon interleaved=interleaved"
    return f"{y} = {LAYER_OP}({inputs}, {weights}) {attributes}"


def _lines(*parts: str) -> str:
    return "\n".join(part.strip("\n") for part in parts)


# The vendor's op is the first layer of a step or the last, not both. A model of one layer becomes two: before its layer
# runs the same layer with zeros for the two matrices that add to the residual stream. It hands its input on, and writes
# the keys and values that the layer then writes again.
_ONLY_LAYER = _lines(
    _CONSTANTS,
    "no_out = npu.zeros_like(out_weight)",
    "no_ffn2 = npu.zeros_like(ffn2_weight)",
    _GUARD,
    _layer(1, y="same", zeros=True),
    _layer(2, x="same"),
    _NORM_OF_ROWS,
)


def _starts(program: Program, match: Match) -> bool:
    """Whether x comes from no other layer."""
    producer = program.producer(match.values["x"])
    return producer is None or producer.name not in ("add", LAYER_OP)


def _goes_on(program: Program, match: Match) -> bool:
    """Whether another layer adds to y, or is fused already."""
    y = match.values["y"]
    return y is not None and any(reader.name in ("add", LAYER_OP) for reader in program.readers_through_views(y))


def _first(program: Program, match: Match) -> bool:
    return _starts(program, match) and _goes_on(program, match)


def _between(program: Program, match: Match) -> bool:
    return not _starts(program, match) and _goes_on(program, match)


def _later(program: Program, match: Match) -> bool:
    return not _starts(program, match)


def _gives_scores(program: Program, match: Match) -> bool:
    """Whether the product is what the program gives, and no part of a layer."""
    logits = match.values["logits"]
    assert logits is not None
    readers = list(program.readers_through_views(logits))
    given = [value for reader in readers if reader.name == "cast" for value in reader.outputs]
    return bool({logits, *given} & set(program.outputs)) and all(reader.name == "cast" for reader in readers)


def _reads_sizes(program: Program, match: Match) -> bool:
    """Whether one size at most is known to the call alone: then reshape finds it."""
    type_ = program.types.get(match.values["y"] or 0)
    return type_ is not None and type_.shape.count(-1) <= 1


STEPS = (
    Step(
        "remove_residual_in_fused_bias_residual_layernorm",
        (
            Rule(
                "y, _ = fk.fusion_add_rms_norm(x, residual, weight) epsilon=epsilon",
                _lines("s = add(x, residual)", "y = fk.fusion_rms_norm(s, weight) epsilon=epsilon"),
            ),
        ),
        "last residual sum, which now stands before its norm",
    ),
    Step(
        "remove_residual_in_rms_norm",
        (
            Rule(
                "y, s = fk.fusion_add_rms_norm(x, residual, weight) epsilon=epsilon",
                _lines("s = add(x, residual)", "y = fk.fusion_rms_norm(s, weight) epsilon=epsilon"),
            ),
        ),
        "residual sum, which now stands before its norm",
    ),
    Step(
        "remove_blha_get_max_len",
        (
            Rule(
                """
                sizes = shape64(q)
                size = slice(sizes)
                all = combine(size)
                shape = stack(all)
                y = reshape(a, shape)
                """,
                "y = reshape(a) shape=y.shape",
                _reads_sizes,
            ),
        ),
        "number of tokens that was read at run time",
    ),
    Step(
        "llama_fuse_attention_layer_begin",
        (Rule(_lines(_LAYER, _LAST), _lines(_CONSTANTS, _GUARD, _layer(1)), _first),),
        "first layer, behind the embedding",
        is_layer=True,
    ),
    Step(
        "llama_fuse_attention_layer_end",
        (
            Rule(
                _lines(_LAYER, _ROWS),
                _lines(_CONSTANTS, _layer(2), _NORM_OF_ROWS),
                _later,
            ),
            Rule(_lines(_LAYER, _ROWS), _ONLY_LAYER, _starts),
        ),
        "last layer with the choice of each row's last token",
        is_layer=True,
    ),
    Step(
        "llama_fuse_attention_layer",
        (Rule(_LAYER, _lines(_CONSTANTS, _layer(0)), _between),),
        "layer between them",
        is_layer=True,
    ),
    Step(
        "llama_fuse_lm_head_with_slice",
        (
            Rule(
                """
                with a = fk.paged_attention(q, k, v, key_cache, value_cache, tables, encoder, decoder, this_time)
                h = fk.fusion_rms_norm(x, norm) epsilon=epsilon
                wide = cast(h) dtype='float32'
                rows = gather(wide, last)
                chosen = cast(rows) dtype='float16'
                logits = fk.fused_linear(chosen, weight)
                """,
                """
                norm_half = npu.half(norm)
                guard reason = npu.unlike_rows(this_time, encoder, decoder, last)
                x_rows = npu.rebuild_padding(x, this_time, encoder, decoder)
                logits = npu.lm_head(x_rows, norm_half, weight) epsilon=epsilon
                """,
                _gives_scores,
            ),
        ),
        "choice of each row's last token, norm and product",
    ),
    Step(
        "llama_fuse_lm_head",
        (
            Rule(
                _lines("h = fk.fusion_rms_norm(x, norm) epsilon=epsilon", "logits = fk.fused_linear(h, weight)"),
                _lines("norm_half = npu.half(norm)", "logits = npu.lm_head(x, norm_half, weight) epsilon=epsilon"),
                _gives_scores,
            ),
        ),
        "norm and product",
    ),
    Step(
        "llama_fuse_get_padding_offset",
        (
            Rule(
                _lines("x = embedding(ids, table)", f"with y = {LAYER_OP}(x, this_time, *) flag=1"),
                _lines("tokens = npu.remove_padding(ids, this_time)", "x = embedding(tokens, table)"),
            ),
        ),
        "input of token ids, cut to the sum of the lengths",
    ),
)


def _is_not_half(program: Program, operation: Operation) -> bool:
    """Whether attention reads, or a product's matrix is, something else."""
    read = {_ATTENTION: 0, _PRODUCT: 1}.get(operation.name)
    return read is not None and program.types[operation.inputs[read] or 0].dtype != "float16"


def _is_collective(program: Program, operation: Operation) -> bool:
    return operation.name in (*_COLLECTIVES, *_FUSED_COLLECTIVES)


def _has_bias_elsewhere(program: Program, operation: Operation) -> bool:
    if operation.name != _PRODUCT or len(operation.inputs) < 3 or operation.inputs[2] is None:
        return False
    return all(reader.name != "split" for reader in program.readers(operation.outputs[0]))


def _has_own_scale(program: Program, operation: Operation) -> bool:
    if operation.name != _ATTENTION or operation.attributes.get("scale") is None:
        return False
    head_dim = program.types[operation.inputs[0] or 0].shape[-1]
    return not math.isclose(operation.attributes["scale"], head_dim**-0.5, rel_tol=1e-6)


def _has_wide_heads(program: Program, operation: Operation) -> bool:
    """Whether the product behind the attention is not square."""
    if operation.name != _ATTENTION:
        return False
    readers = program.readers_through_views(operation.outputs[0])
    products = (each for each in readers if each.name == _PRODUCT)
    shapes = [program.types[each.inputs[1] or 0].shape for each in products]
    return any(rows != columns for rows, columns in shapes)


def _has_more(program: Program, operation: Operation) -> bool:
    """Whether an argument asks for more; 0 and False are how a program says that none does."""
    asked = {name for name, value in operation.attributes.items() if value}
    return operation.name == _ATTENTION and not asked <= {"scale"}


passes = Passes(
    steps=STEPS,
    functions={
        f"npu.{name}": f"fusionkit_backends.npu.decoder_layer:{name}"
        for name in (
            "angles", "decoder_layer", "half", "lm_head", "rebuild_padding", "remove_padding", "unlike_rows",
            "zeros_like",
        )
    },
    obstacles=(
        Obstacle("fused_blha_layer_op takes float16 only", _is_not_half),
        Obstacle("fused_blha_layer_op has no sum over cards inside a layer: tensor parallelism", _is_collective),
        Obstacle("fused_blha_layer_op has a bias for q, k and v only", _has_bias_elsewhere),
        Obstacle("fused_blha_layer_op scales scores by 1 / sqrt(head_dim) only", _has_own_scale),
        Obstacle("fused_blha_layer_op needs hidden_size = heads * head_dim", _has_wide_heads),
        Obstacle("fused_blha_layer_op attends to all tokens before, without further arguments", _has_more),
    ),
    layer=_ATTENTION,
    keeps_state=True,
)  # fmt: skip
