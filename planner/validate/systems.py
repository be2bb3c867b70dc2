"""The systems whose steps were measured, and the devices they ran on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fusionkit_planner.system import System

MEGATRON_GPT = System(
    name="Megatron-LM of 2021 and 2022",
    whole_tensors=11,  # two norms read and write; bias, dropout and addition read two and a half, and write
    attention_tensors=2,  # heads are brought together: read and written
    mlp_tensors=1,  # bias and GeLU in one kernel
    score_bytes=9,  # softmax with scale and mask: 2 + 2; dropout: 2 + 2 + 1
    logit_bytes=60,  # float32 copies, maximum, exponential, sum, and backward
    skips_masked=False,
    attention_backward=2,
    kernels=40,
    gradient_bytes_moved=6,
    update_bytes=30,
    parameter_bytes=2,
    gradient_bytes=4,
    optimizer_bytes=12,
    sent_gradient_bytes=2,
    sent_parameter_bytes=2,
    hides_tensor=False,
    gathers_again=True,
    hides_gradients=False,
    divides_sends=True,
    adds_tied=False,  # it does, but vTrain's rows do not say how long it takes: docs/planner.md, what is missed
    data_is_outermost=False,
    source="Narayanan et al. 2021, arXiv:2104.04473, sections 4.1 and 4.2; Korthikanti et al. 2022, arXiv:2205.05198",
)
# Messages of vTrain's rows of one node take as long with two ranks of tensor as with one, so they are sent whole.
MEGATRON_GPT_NODE = replace(MEGATRON_GPT, name="Megatron-LM of 2021 within a node", divides_sends=False)
MEGATRON_CORE = System(
    name="Megatron-Core with Transformer Engine",
    whole_tensors=10,  # two norms read and write, two additions read two and write
    attention_tensors=2,
    mlp_tensors=1,
    score_bytes=0,
    logit_bytes=20,  # one fused kernel forward and one backward, beside the product's
    skips_masked=True,
    attention_backward=2.5,
    kernels=30,
    gradient_bytes_moved=12,  # a product's result written and read, the float32 sum read and written
    update_bytes=32,
    parameter_bytes=2,
    gradient_bytes=4,
    optimizer_bytes=12,
    sent_gradient_bytes=4,
    sent_parameter_bytes=2,
    hides_tensor=False,
    gathers_again=True,
    hides_gradients=False,
    divides_sends=True,
    adds_tied=True,
    data_is_outermost=False,
    source="Megatron-Core's documentation: distributed optimizer, fused cross entropy; SimuMax, docs/b200",
)


@dataclass(frozen=True)
class Device:
    """What a data sheet says: where a fit begins, and from which it strays only as far as rows ask.

    Args:
        cores: streaming multiprocessors, over which a product's tiles go in waves.
        peak_flops: dense, in 16 bits.
        product_share: of it, that large products reach: cuBLAS at the clocks of a full load.
        memory_bandwidth: bytes/s.
        link_bandwidth: of one device within a node, bytes/s in one direction.
        node_bandwidth: of a node's network cards together, in one direction.
    """

    name: str
    cores: int
    peak_flops: float
    product_share: float
    memory_bandwidth: float
    link_bandwidth: float
    node_bandwidth: float
    source: str


A100 = Device(
    "A100", 108, 312e12, 0.85, 2.0e12, 300e9, 100e9,
    "NVIDIA A100 data sheet; nodes of 8 with four HDR cards of 200 Gbit/s (Bang et al. 2024, MICRO, vTrain)",
)  # fmt: skip
B200 = Device("B200", 148, 2250e12, 0.75, 8e12, 900e9, 400e9, "NVIDIA DGX B200 data sheet")
