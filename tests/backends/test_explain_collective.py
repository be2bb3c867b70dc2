"""`fusionkit explain` of an op whose ranks call together."""

from __future__ import annotations

from fusionkit.cli import main


def test_the_number_of_ranks_stands_for_the_group(capsys):
    tensors = ["x=6x256:bfloat16", "weight=256x256:bfloat16"]
    assert main(["explain", "matmul_reduce_scatter", *tensors, "group=2", "--device", "npu"]) == 0
    assert "world_size 2" in (told := capsys.readouterr().out) and "-> npu: chosen" in told
    assert main(["explain", "matmul_reduce_scatter", *tensors, "group=3", "--device", "npu"]) == 0
    assert "-> eager: fallback: npu: world_size must be 2, 4 or 8, got 3" in capsys.readouterr().out
    assert main(["explain", "matmul_reduce_scatter", *tensors, "group=4", "--device", "npu"]) == 2
    assert "x must be [rows, in_features] with rows a multiple of world_size, got 6" in capsys.readouterr().err
