"""A layout as the flags file of the Llama example's `sft.py`."""

from __future__ import annotations

from typing import Any

from fusionkit_planner.layout import Layout

GRANULARITIES = {"selective": "core_attn", "full": "full"}


def flags(layout: Layout, sequence: int, dtype: str) -> dict[str, Any]:
    """By name. Model, data and output folder are for the command line; so is how long to train."""
    found: dict[str, Any] = {
        "max_length": sequence,
        "zero_padding": True,  # rows are full: the plan counts `sequence` tokens in each
        "bf16": dtype == "bfloat16",
        "per_device_train_batch_size": layout.micro_batch,
        "gradient_accumulation_steps": layout.micro_batches,
        "tensor_parallel_degree": layout.tensor,
        "pipeline_parallel_degree": layout.pipeline,
        "virtual_pp_degree": layout.virtual_stages,
        "recompute": layout.recompute != "none",
    }
    if layout.recompute != "none":
        found["recompute_granularity"] = GRANULARITIES[layout.recompute]
    if layout.tensor > 1:
        found["sequence_parallel"] = layout.sequence_parallel
    if layout.sharding > 1:
        found |= {"sharding": f"stage{layout.stage}", "sharding_parallel_degree": layout.sharding}
    return found
