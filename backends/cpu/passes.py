"""What becomes of a program that is loaded for the host: one op a decoder layer.

The op makes the calls of the operations that it stands for, in their order, so that a program keeps its bits.
"""

from __future__ import annotations

from fusionkit.passes.program import Operation, Program
from fusionkit.passes.steps import Obstacle, Passes, Rule, Step

_ATTENTION, _LAYER_OP = "fk.paged_attention", "cpu.decoder_layer"
_CACHE = "key_cache, value_cache, tables, encoder, decoder, this_time"
_ATTENDED = f"{_ATTENTION}(q_turned, k_turned, v, {_CACHE})"


def _pattern(norm: str, stream: str) -> str:
    return f"""
        {norm} epsilon=epsilon
        qkv = fk.fused_linear(n, qkv_weight, qkv_bias?) batch_invariant=products
        q, k, v = split(qkv)
        q_turned, k_turned = fk.fusion_rope(q, k, cos, sin, positions) interleaved=interleaved
        a, keys, values = {_ATTENDED} scale=scale window=window batch_invariant=attention
        sizes = shape64(q_turned)
        size = slice(sizes)
        all = combine(size)
        shape = stack(all)
        o = fk.fused_linear(a, out_weight, out_bias?) batch_invariant=products
        m, s = fk.fusion_add_rms_norm(o, {stream}, mlp_norm) epsilon=epsilon
        gate_up = fk.fused_linear(m, gate_up_weight) batch_invariant=products
        gate, up = split_with_num(gate_up)
        g = fk.swiglu(gate, up)
        y = fk.fused_linear(g, down_weight) batch_invariant=products
    """


def _replacement(residual: str) -> str:
    inputs = f"""
        x, {residual}, norm, qkv_weight, qkv_bias, cos, sin, positions, {_CACHE}, out_weight, out_bias, mlp_norm,
        gate_up_weight, down_weight
    """
    attributes = """
        epsilon=epsilon scale=scale num_heads=q_turned.shape[2] num_kv_heads=k_turned.shape[2] window=window
        intermediate_size=g.shape[-1] interleaved=interleaved products_invariant=products attention_invariant=attention
    """
    return " ".join(f"y, s, keys, values = {_LAYER_OP}({inputs}) {attributes}".split())


def _has_int8_cache(program: Program, operation: Operation) -> bool:
    given = (program.types[value].dtype for value in operation.inputs if value in program.types)
    return operation.name == _ATTENTION and "int8" in given


passes = Passes(
    steps=(
        Step(
            "fuse_decoder_layer",
            (
                Rule(_pattern("n = fk.fusion_rms_norm(x, norm)", "x"), _replacement("None")),
                Rule(_pattern("n, r = fk.fusion_add_rms_norm(x, residual, norm)", "r"), _replacement("residual")),
            ),
            "decoder layer",
            is_layer=True,
        ),
    ),
    functions={_LAYER_OP: "fusionkit_decoder_layer_"},
    obstacles=(Obstacle("its op takes no cache of int8", _has_int8_cache),),
    layer=_ATTENTION,
)
