"""Two layers of Llama 2 13B's widths take a step in layouts of eight emulated npus; what the device accounts for beside
what is predicted. `make test-slices` sets up what it needs and runs this file; `make test` does not.

It prints the table of docs/training.md, and needs 18 GB of free memory.
"""

from __future__ import annotations

import pytest

from tests.emulator.measured_steps import require_predicted, steps_of

# 4096 entries of the vocabulary instead of 32000.
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 2,
    "num_attention_heads": 40,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
# Degrees and the step. Copies that held all matrices and gradients would need 20 GB.
LAYOUTS = {
    "tp8": ({"tensor_parallel_degree": 8}, {"tokens": 512}),
    "tp4-sharding2": ({"tensor_parallel_degree": 4, "sharding_parallel_degree": 2}, {"tokens": 128, "stage": 3}),
    "tp2-pp2-sharding2": (
        {"tensor_parallel_degree": 2, "pipeline_parallel_degree": 2, "sharding_parallel_degree": 2},
        {"tokens": 128, "stage": 3, "micro_batches": 2},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_peak_of_each_rank_is_predicted(tmp_path, name):
    degrees, changes = LAYOUTS[name]
    choices = [{"rows": 1, **changes}]
    ranks = steps_of(SIZES, degrees, choices, tmp_path / "log", timeout=3000)
    assert len(ranks) == 8
    print("\n| layout | rank | parameters | gradients | optimizer | peak, accounted | peak, predicted | apart |")
    for rank, (found,) in enumerate(ranks):
        measured, predicted = found["measured"], found["predicted"]
        shown = [f"{measured[part] / 1e6:.1f}" for part in ("parameters", "gradients", "optimizer", "peak")]
        apart = f"{predicted['peak'] / measured['peak'] - 1:+.2%}"
        print(f"| {name} | {rank} | {' | '.join(shown)} | {predicted['peak'] / 1e6:.1f} | {apart} |")
    print(f"{name}: {sum(found['host'] for (found,) in ranks) / 1e9:.1f} GB in the memory of all processes")
    for found in ranks:
        require_predicted(found, choices)
    rehearsed = steps_of(SIZES, degrees, choices, tmp_path / "rehearsed", timeout=3000, options=("--rehearse",))
    for (found,), (dry,) in zip(ranks, rehearsed, strict=True):
        assert dry["measured"]["peak"] == pytest.approx(found["measured"]["peak"], rel=0.01)
