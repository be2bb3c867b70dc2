"""`paddle.amp.auto_cast` O1 and O2 reach the fused ops as each spec's AMP class says."""

from __future__ import annotations

import paddle
import pytest

import fusionkit as fk

pytestmark = pytest.mark.filterwarnings("ignore:amp_guard can only be enabled")


@pytest.fixture
def layer():
    paddle.seed(0)
    x = paddle.randn([4, 32])
    weight = paddle.randn([32, 16])
    weight.stop_gradient = False
    return x, weight


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_products_run_low_and_master_weights_keep_float32_gradients(layer, level, dtype):
    x, weight = layer
    with paddle.amp.auto_cast(level=level, dtype=dtype):
        y = fk.fused_linear(x, weight)
        again = fk.fused_linear(x, weight)
    assert y.dtype == getattr(paddle, dtype) and bool((y.cast("float32") == again.cast("float32")).all())
    y.backward(paddle.ones_like(y))
    assert weight.grad.dtype == paddle.float32
    assert fk.ledger()[("fused_linear", "cpu", "chosen")] == 2


@pytest.mark.parametrize("level, dtype", [("O1", paddle.float32), ("O2", paddle.bfloat16)])
def test_norms_keep_their_dtype_at_o1_and_go_low_at_o2(layer, level, dtype):
    x, _ = layer
    with paddle.amp.auto_cast(level=level, dtype="bfloat16"):
        assert fk.fusion_rms_norm(x, paddle.ones([32])).dtype == dtype


def test_custom_lists_name_ops(layer):
    x, weight = layer
    with paddle.amp.auto_cast(level="O1", dtype="bfloat16", custom_white_list={"fusion_rms_norm"}):
        assert fk.fusion_rms_norm(x, paddle.ones([32])).dtype == paddle.bfloat16
    with paddle.amp.auto_cast(level="O1", dtype="bfloat16", custom_black_list={"fused_linear"}):
        assert fk.fused_linear(x, weight).dtype == paddle.float32


def test_switched_off_or_left_behind_changes_nothing(layer):
    x, weight = layer
    with paddle.amp.auto_cast(enable=False, dtype="bfloat16"):
        assert fk.fused_linear(x, weight).dtype == paddle.float32
    assert fk.fused_linear(x, weight).dtype == paddle.float32


def test_float32_only_inputs_are_never_cast():
    q, cos = paddle.randn([1, 3, 2, 8]), paddle.randn([3, 4])
    with paddle.amp.auto_cast(level="O2", dtype="bfloat16"):
        rotated, _ = fk.fusion_rope(q, q, cos, cos)
    assert rotated.dtype == paddle.bfloat16


@pytest.mark.parametrize("backend", ["cpu", "eager"])
def test_a_static_graph_traced_under_auto_cast_computes_low(layer, backend):
    x, weight = layer

    @paddle.jit.to_static(full_graph=True)
    def product(x, weight):
        with paddle.amp.auto_cast(level="O1", dtype="bfloat16"):
            return fk.fused_linear(x, weight)

    with fk.use_backend(backend):
        assert product(x, weight).dtype == paddle.bfloat16
