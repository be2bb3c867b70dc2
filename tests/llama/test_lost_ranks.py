"""An error of a lost rank says which process that is, wherever in a step another process meets it."""

from __future__ import annotations

import traceback

import pytest

from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel import gradients
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.sft import sft
from examples.llama2_13b.train import metrics
from examples.llama2_13b.train.run import telling_who
from tests.llama.meshes import on_mesh
from tests.llama.test_pipeline import Run, batches, folder_of  # noqa: F401

# degrees, stage of sharding, who leaves, what another process tells
LAYOUTS = {
    "data": (Degrees(data=2), 1, 1, "group replicas: from 0 on the processes 0 1"),
    "tensor": (Degrees(data=2, tensor=2), 1, 3, "group tensor: from 0 on the processes 2 3"),
    "pipeline": (Degrees(pipeline=2, tensor=2), 1, 3, "group pipeline: from 0 on the processes 1 3"),
    "stage2": (Degrees(sharding=2), 2, 1, "group sharding: from 0 on the processes 0 1"),
    "stage2-tensor": (Degrees(sharding=2, tensor=2), 2, 3, "group sharding: from 0 on the processes 1 3"),
    "stage3": (Degrees(sharding=2), 3, 1, "group sharding: from 0 on the processes 0 1"),
}


class _Leaves(Exception):
    pass


def told(folder, mesh, leaver):
    """The error of a step in which a rank leaves after its first forward pass; "" of that rank itself."""
    run = Run(folder, mesh)
    work, *shapes = run.work(run.own(list(batches(0, 4))))

    def forward(*micro_batch):
        result = work(*micro_batch)
        if mesh.rank == leaver:
            raise _Leaves
        return result

    run.gradients.expect(len(shapes[0]), 4 // mesh.copies)
    try:
        with telling_who(mesh):
            mesh.pipeline.train(run.gradients.checked(forward), *shapes, 1.0)
            run.gradients.reduce()
            run.optimizer.step(1e-3)
    except _Leaves:
        return ""
    except Exception as error:
        return "".join(traceback.format_exception(error))
    finally:
        for group in mesh._groups().values():
            group.close()
    return "no error"


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_rank_and_its_process_are_told(folder_of, name, monkeypatch):  # noqa: F811
    """In the backward pass too, where Paddle raises another error in place of the communicator's."""
    monkeypatch.setattr(gradients, "BUCKET_ELEMENTS", 500)  # so that a backward pass waits for some
    degrees, stage, leaver, text = LAYOUTS[name]
    errors = on_mesh(degrees, lambda mesh: told(folder_of(4), mesh, leaver), stage)
    assert errors[leaver] == ""
    for rank, error in enumerate(errors):
        assert rank == leaver or "must answer within" in error and f"This is process {rank} of" in error, error
    assert any(text in error for error in errors), errors


def test_what_a_backward_pass_has_met_ends_the_next_forward_pass():
    """A step may have many micro-batches."""
    run = gradients.Gradients(Mesh(), [])
    run.arrived(None)  # no parameter
    forward = run.checked(lambda *micro_batch: micro_batch)
    assert forward(0, 1) == (0, 1)
    run._wanted, run._early = [1], None
    run.arrived("weight")
    for call in (forward, run.reduce):
        with pytest.raises(TypeError, match="NoneType"):
            call()


def test_a_run_begins_no_micro_batch_after_it(sft_flags, monkeypatch):
    class Lost(RuntimeError):
        pass

    def lose(gradients, *counts):
        gradients._failure = Lost()

    def loss(*arguments):
        raise AssertionError("a forward pass")

    monkeypatch.setattr(gradients.Gradients, "expect", lose)
    monkeypatch.setattr(Llama, "loss", loss)
    monkeypatch.setattr(metrics, "measure_peak_flops", lambda dtype: 1e11)
    with pytest.raises(Lost):
        sft(sft_flags(max_steps=1, warmup_steps=0))


def test_a_process_tells_where_it_stands_and_who_the_ranks_of_its_groups_are():
    texts = on_mesh(Degrees(data=2, pipeline=2, tensor=2), lambda mesh: mesh.whereabouts("no communicator's"))
    assert "process 3 of 8: data 0 of 2, pipeline 1 of 2, tensor 1 of 2." in texts[3], texts[3]
    groups = "data 3 7; pipeline 1 3; tensor 2 3; replicas 3 7; world 0 1 2 3 4 5 6 7"
    assert texts[3].endswith(groups), texts[3]


@pytest.mark.parametrize("name", ["data", "pipeline", "tensor"])
def test_the_group_of_an_error_is_found_by_its_number(name):
    def text(mesh):
        number = mesh._communicators()[name].number
        return mesh.whereabouts(f"all_reduce: rank 1 must answer, communicator {number}")

    texts = on_mesh(Degrees(data=2, pipeline=2, tensor=2), text)
    members = {"data": "0 4", "pipeline": "0 2", "tensor": "0 1"}
    assert texts[0].endswith(f"group {name}: from 0 on the processes {members[name]}"), texts
