"""Which ranks of a rehearsal have a layer more than others, from calls that are written down by hand."""

from __future__ import annotations

import pytest
from fusionkit_emulator import stages

# Calls of a layer's forward pass, as the Llama example's lines make them, and of the model's ends.
LAYER = {"rms_norm": 2, "column": 2, "row": 2, "rope": 2, "attention": 1, "swiglu": 1, "add": 2}
FIRST, LAST = {"embedding": 1, "cast": 1}, {"rms_norm": 1, "column": 1, "loss": 3}
MIDDLE = {"receive": 2}


def calls(layers, *ends, micro_batches=4):
    each = {name: layers * count for name, count in LAYER.items()}
    for end in ends:
        each |= {name: each.get(name, 0) + count for name, count in end.items()}
    return {name: micro_batches * count for name, count in each.items()}


def pipeline(*layers, tensor=1):
    """(rank, calls) of stages with so many layers."""
    ends = [FIRST, *[MIDDLE] * (len(layers) - 2), LAST]
    made = [calls(count, end) for count, end in zip(layers, ends, strict=True) for _ in range(tensor)]
    return list(enumerate(made))


@pytest.mark.parametrize("layers", [(1, 1), (2, 2), (5, 5, 5, 5), (40, 40)])
@pytest.mark.parametrize("tensor", [1, 2])
def test_equal_stages_are_not_found_whatever_ends_the_model_has(layers, tensor):
    assert list(stages.unequal(pipeline(*layers, tensor=tensor))) == []


@pytest.mark.parametrize(
    "layers, told",
    [
        ((2, 3), ["0, 1: fewest", "2, 3: 3 for each 2 of rank 0"]),
        ((3, 2), ["2, 3: fewest", "0, 1: 3 for each 2 of rank 2"]),
        ((5, 6, 5, 5), ["0, 1, 4, 5, 6, 7: fewest", "2, 3: 6 for each 5 of rank 0"]),
        ((5, 5, 5, 6), ["0, 1, 2, 3, 4, 5: fewest", "6, 7: 6 for each 5 of rank 0"]),
        ((40, 41), ["0, 1: fewest", "2, 3: 41 for each 40 of rank 0"]),
        ((4, 2, 3), ["2, 3: fewest", "4, 5: 3 for each 2 of rank 2", "0, 1: 2 for each 1 of rank 2"]),
    ],
)
def test_a_layer_more_is_found_with_its_ranks_and_lines(layers, told):
    found = list(stages.unequal(pipeline(*layers, tensor=2)))
    assert found[0].startswith("FOUND") and found[1 : 1 + len(told)] == [f"  rank {each}" for each in told]
    assert any(line.startswith("  add: ") for line in found) and not any("loss" in line for line in found)


def test_copies_that_see_other_rows_are_alike():
    assert list(stages.unequal([(0, calls(4, FIRST, LAST)), (1, calls(4, FIRST, LAST) | {"mask": 9})])) == []
    evaluates = [(number, calls(4, FIRST, LAST, micro_batches=count)) for number, count in enumerate((6, 6, 4, 4))]
    assert list(stages.unequal(evaluates)) == []
    once_a_step = {f"line {number}": 3 for number in range(9)}  # more than a tenth of the lines
    evaluates = [
        (number, calls(20, FIRST, LAST, micro_batches=count) | once_a_step) for number, count in enumerate((36, 35))
    ]
    assert list(stages.unequal(evaluates)) == []
    longer = [(number, calls(layers, FIRST, LAST)) for number, layers in enumerate((4, 5))]  # the ends stay
    assert any("5 for each 4" in line for line in stages.unequal(longer))
    assert list(stages.unequal([])) == list(stages.unequal([(0, {}), (1, calls(2))])) == []


def test_the_file_of_a_process_is_read(tmp_path):
    file = tmp_path / "1.forward"
    file.write_text(
        "          12\tmatmul\ttrain.py:3 in run\n           1\tadd\t\n           2\tmatmul\ttrain.py:3 in run\n"
    )
    assert stages.read(file) == {"matmul of train.py:3 in run": 14, "add of no Python code": 1}
    assert stages.read(tmp_path / "none.forward") == {}
