"""Which attention a call of PyTorch's tensors gets: the framework's own for plain calls, this package's for the rest.

FlashAttention and cuDNN, behind torch.nn.functional.scaled_dot_product_attention, are tuned for the card to a degree
that Triton does not reach. They know no bounds of rows, no rows without keys, and no causal aligned bottom-right.
"""

from __future__ import annotations

from typing import Any

from fusionkit import settings
from fusionkit.capability import Absent, AllOf, AnyOf, Between, InverseRoot, MultipleOf, OneOf, SameSize
from fusionkit.dtypes import SIXTEEN_BITS
from fusionkit.ledger import ledger

SETTING = "FUSIONKIT_GPU_ATTENTION"  # "triton": never the framework's own
PLAIN = AllOf(
    (
        OneOf("q.dtype", SIXTEEN_BITS),
        Absent("attn_mask"),
        Absent("startend_row_indices"),
        OneOf("return_lse", (False,)),
        InverseRoot("scale", "head_dim"),
        MultipleOf("head_dim", 8),
        Between("head_dim", 8, 257),
        Between("batch_size", 1, None),
        Between("q_len", 1, None),
        Between("kv_len", 1, None),
        AnyOf((OneOf("causal", (False,)), SameSize("q_len", "kv_len"), OneOf("q_len", (1,)))),
    )
)
PLAIN_NOTE = "plain attention of 16 bits: torch's scaled_dot_product_attention runs it"
OURS, FRAMEWORKS = (
    ledger().way("flash_attention", "gpu", f"ran by {name}")
    for name in ("its own kernel", "torch's scaled_dot_product_attention")
)


def is_plain(q: Any, k: Any, causal: bool, masks: tuple[Any, Any], scale: float | None, return_lse: bool) -> bool:
    """PLAIN, asked of tensors: judging predicates takes longer than launching a kernel."""
    if masks != (None, None) or return_lse or q.element_size() != 2 or q.numel() == 0 or k.shape[1] == 0:
        return False
    q_len, head_dim = q.shape[1], q.shape[3]
    default = scale is None or abs(scale * head_dim**0.5 - 1) <= 1e-6
    return default and head_dim % 8 == 0 and head_dim <= 256 and (not causal or q_len == k.shape[1] or q_len == 1)


def is_for_the_framework(q: Any, plain: bool) -> bool:
    return plain and q.is_cuda and settings.value(SETTING) != "triton"
