"""A step leaves nothing behind: a server runs millions of them."""

from __future__ import annotations

import gc

import numpy as np

from examples.llama2_13b.export import ExportFlags, export
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.generate.key_value_cache import KeyValueCache
from examples.llama2_13b.generate.static_program import StaticProgram
from examples.llama2_13b.generate.step_inputs import StepInputs


def inputs(*lengths):
    """Rows whose prompts are new."""
    counts = np.array(lengths, np.int32)
    return StepInputs(
        input_ids=np.arange(5, 5 + counts.sum()),
        position_ids=np.concatenate([np.arange(length) for length in lengths]),
        last_tokens=np.cumsum(counts, dtype=np.int32) - np.int32(1),
        seq_lens_encoder=counts,
        seq_lens_decoder=np.zeros_like(counts),
        seq_lens_this_time=counts,
        block_tables=np.arange(len(lengths), dtype=np.int32)[:, None],
    )


def test_steps_of_any_shape_leave_no_object_behind(tiny_folder, tmp_path):
    export(ExportFlags(str(tiny_folder), str(tmp_path / "exported")))
    config = LlamaConfig.from_json(tmp_path / "exported" / "config.json")
    program, cache = StaticProgram(tmp_path / "exported", config), KeyValueCache(config, "float32", 4, 16)
    shapes = [(3,), (7, 2, 9), (1,), (16, 16), (1, 1, 1, 1)]
    first = [program(inputs(*lengths), cache) for lengths in shapes]
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(20):
        again = [program(inputs(*lengths), cache) for lengths in shapes]
    gc.collect()
    assert len(gc.get_objects()) - before < 20  # of 100 steps
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)
