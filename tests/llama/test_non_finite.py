"""A loss or gradient that is not finite stops all processes with step, rank and layer, and leaves checkpoints whole."""

from __future__ import annotations

from html import escape

import numpy as np
import paddle
import pytest

from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.sft import sft
from examples.llama2_13b.train import non_finite, training_state
from examples.llama2_13b.train.trainer import Trainer
from tests.llama.meshes import on_mesh
from tests.llama.test_pipeline import Run, batches, folder_of  # noqa: F401
from tests.llama.test_sft import assert_same_weights, losses
from tests.llama.test_sft_processes import launched

LAYERS, MICRO_BATCHES = 4, 4
# degrees, stage of sharding, chunks, recomputation
LAYOUTS = {
    "one": (Degrees(), 1, 1, None),
    "dp2": (Degrees(data=2), 1, 1, "full"),
    "tp2": (Degrees(tensor=2), 1, 1, None),
    "pp2": (Degrees(pipeline=2), 1, 1, "full"),
    "pp2-interleaved": (Degrees(pipeline=2), 1, 2, None),
    "sharding2-stage2": (Degrees(sharding=2), 2, 1, None),
    "sharding2-stage3": (Degrees(sharding=2), 3, 1, None),
    "pp2-tp2": (Degrees(pipeline=2, tensor=2), 1, 1, None),
}


def spoiled(layer, is_backward):
    """From now on the layer's output, or else the gradient that comes to it, is not a number."""

    def after(layer, inputs, output):
        if not is_backward:
            return output * float("nan")
        return output + paddle.sqrt((output - output.detach()) ** 2)  # adds zeros; the root's slope there is infinite

    layer.register_forward_post_hook(after)


def found(folder, mesh, recompute, spoil):
    """What `origin` tells on a rank after a step of a spoiled model."""
    run = Run(folder, mesh, recompute=recompute)
    spoil(mesh, run.model)
    everything = list(batches(0, MICRO_BATCHES))
    own, divisor = mesh.share(everything), sum(batch.num_targets for batch in everything) / mesh.copies
    run.gradients.expect(len(own), MICRO_BATCHES // mesh.copies)
    total = mesh.pipeline.train(*run.work(own), divisor)
    run.gradients.reduce()
    (loss,), norm = mesh.totals(total), mesh.gradient_norm(dict(run.model.named_parameters()).values())
    draws = []
    text = non_finite.origin(run.model, mesh, run.work(own), divisor, lambda: draws.append(1))
    return np.isfinite(loss), np.isfinite(norm), text, len(draws)


def on_layout(folder, name, spoil):
    degrees, stage, chunks, recompute = LAYOUTS[name]
    return on_mesh(degrees, lambda mesh: found(folder, mesh, recompute, spoil), stage, chunks)


def rank_of(mesh):
    return 0 if mesh.world is None else mesh.world.rank


def has(model, layer):
    return layer in dict(model.named_sublayers())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_first_output_is_named_with_its_rank(folder_of, name):  # noqa: F811
    layer = "layers.2.mlp.gate_up_proj"
    culprits = []

    def spoil(mesh, model):
        is_last = mesh.copy == mesh.copies - 1 and mesh.tensor.rank == mesh.tensor.size - 1
        if has(model, layer) and is_last:
            culprits.append(rank_of(mesh))
            spoiled(dict(model.named_sublayers())[layer], is_backward=False)

    answers = on_layout(folder_of(LAYERS), name, spoil)
    (rank,) = culprits
    expected = f"on rank {rank} the output of {layer} in micro-batch 0"
    assert answers == [(False, False, expected, 1)] * len(answers)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_last_layer_with_a_bad_gradient_is_named_with_its_rank(folder_of, name):  # noqa: F811
    """The loss is finite. Layers below have bad gradients too."""
    layer = "layers.1.self_attn.o_proj"
    culprits = []

    def spoil(mesh, model):
        if has(model, layer) and mesh.copy == mesh.copies - 1:
            culprits.append(rank_of(mesh))
            spoiled(dict(model.named_sublayers())[layer], is_backward=True)

    answers = on_layout(folder_of(LAYERS), name, spoil)
    expected = f"on rank {min(culprits)} the gradient of {layer}.weight"
    assert answers == [(True, False, expected, 2)] * len(answers)


@pytest.mark.parametrize("name", ["tp2", "pp2-tp2"])
def test_a_bad_shard_of_a_parameter_is_named_with_its_rank(folder_of, name):  # noqa: F811
    """The sum over the ranks is bad on all."""
    weight = "layers.3.mlp.down_proj.weight"
    culprits = []

    def spoil(mesh, model):
        parameter = dict(model.named_parameters()).get(weight)
        if parameter is not None and mesh.tensor.rank == 1:
            culprits.append(rank_of(mesh))
            parameter.set_value(np.full(parameter.shape, np.inf, np.float32))

    answers = on_layout(folder_of(LAYERS), name, spoil)
    (rank,) = culprits
    layer = weight.removesuffix(".weight")
    expected = f"on rank {rank} the output of {layer} in micro-batch 0 after the parameter {weight}"
    assert [text for _, _, text, _ in answers] == [expected] * len(answers)


def test_a_bad_parameter_that_one_rank_keeps_is_named_with_its_rank(folder_of):  # noqa: F811
    """In stage 3 of sharding the others have it only while its layer computes."""
    weight = "layers.2.mlp.gate_up_proj.weight"
    culprits = []

    def spoil(mesh, model):
        parameter = dict(model.named_parameters())[weight]
        if model.sharding.has(parameter):
            culprits.append(rank_of(mesh))
            parameter.set_value(np.full(parameter.shape, np.inf, np.float32))

    answers = on_layout(folder_of(LAYERS), "sharding2-stage3", spoil)
    (rank,) = culprits
    expected = f"on rank {rank} the output of layers.2.mlp.gate_up_proj in micro-batch 0 after the parameter {weight}"
    assert [text for _, _, text, _ in answers] == [expected] * 2


@pytest.mark.parametrize("bad", [1, 3])
def test_the_micro_batch_is_named(folder_of, bad):  # noqa: F811
    """One element of all is bad there, and in those that follow."""
    calls = []

    def spoil(mesh, model):
        def after(layer, inputs, output):
            calls.append(layer)
            if (len(calls) - 1) % MICRO_BATCHES < bad:
                return output
            wrong = np.zeros(output.shape, np.float32)
            wrong.flat[-1] = np.inf
            return output + paddle.to_tensor(wrong)

        model.layers["2"].mlp.down_proj.register_forward_post_hook(after)

    answers = on_layout(folder_of(LAYERS), "one", spoil)
    expected = f"on rank 0 the output of layers.2.mlp.down_proj in micro-batch {bad}"
    assert answers == [(False, False, expected, 1)] and len(calls) == 2 * MICRO_BATCHES


def test_an_earlier_micro_batch_comes_before_an_earlier_layer(folder_of):  # noqa: F811
    """The first layer is bad from the second micro-batch on, the last one in all."""
    calls = []

    def spoil(mesh, model):
        def after(layer, inputs, output):
            calls.append(layer)
            return output * (float("nan") if (len(calls) - 1) % MICRO_BATCHES else 1.0)

        if mesh.pipeline.is_first:
            model.layers["0"].mlp.down_proj.register_forward_post_hook(after)
        else:
            spoiled(model.layers["3"].mlp.down_proj, is_backward=False)

    answers = on_layout(folder_of(LAYERS), "pp2-interleaved", spoil)
    assert answers == [(False, False, "on rank 1 the output of layers.3.mlp.down_proj in micro-batch 0", 1)] * 2


def test_what_is_computed_between_layers_is_the_input_of_the_next(folder_of, monkeypatch):  # noqa: F811
    attention = "examples.llama2_13b.model.llama.fk.flash_attention"
    monkeypatch.setattr(attention, lambda q, k, v, **options: q * float("nan"))
    ((_, _, text, _),) = on_layout(folder_of(LAYERS), "one", lambda mesh, model: None)
    assert text == "on rank 0 the input of layers.0.self_attn.o_proj in micro-batch 0"


def test_a_loss_over_finite_layers_is_that_of_the_head(folder_of):  # noqa: F811
    def spoil(mesh, model):
        model.lm_head.weight.set_value(np.full(model.lm_head.weight.shape, np.inf, np.float32))

    ((_, _, text, _),) = on_layout(folder_of(LAYERS), "one", spoil)
    assert text == "on rank 0 the loss of the output of lm_head in micro-batch 0 after the parameter lm_head.weight"


def test_a_step_that_is_finite_when_computed_again_says_so(folder_of):  # noqa: F811
    run = Run(folder_of(LAYERS), Mesh())
    text = non_finite.origin(run.model, Mesh(), run.work(list(batches(0, 2))), 1.0, lambda: None)
    assert text.startswith("computed again all layers and gradients are, so a sum of them was too large")


@pytest.mark.usefixtures("no_measuring", "no_drawing")
@pytest.mark.parametrize("is_backward, what", [(False, "loss"), (True, "gradient's norm")])
def test_a_run_stops_before_the_update_and_goes_on_from_its_checkpoint(
    sft_flags, tmp_path, monkeypatch, is_backward, what
):
    sft(sft_flags(output_dir=str(tmp_path / "whole"), save_steps=2))
    step = Trainer._step

    def spoiling(self, *arguments):
        if self.step == 3:
            spoiled(self.model.layers["1"].mlp.down_proj, is_backward)
        return step(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", spoiling)
        with pytest.raises(FloatingPointError) as told:
            sft(sft_flags(save_steps=2))
    place = "gradient of layers.1.mlp.down_proj.weight" if is_backward else "output of layers.1.mlp.down_proj in micro"
    assert str(told.value).startswith(f"sft: step 4: the {what} must be finite, got nan; first on rank 0 the {place}")
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"{escape(str(told.value))}.</p>" in page and "training, now " in page
    assert [path.name for path in training_state.checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    assert sft(sft_flags(save_steps=2, resume_from_checkpoint="last")) == 0
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    assert_same_weights(tmp_path / "whole", tmp_path / "run")


def test_all_processes_of_a_command_end_with_the_same_line(tiny_folder, few_samples, tmp_path):
    model = Llama.from_pretrained(tiny_folder)
    model.norm.weight.set_value(np.full(48, np.inf, np.float32))
    model.save_pretrained(tmp_path / "broken")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "broken" / name).write_bytes((tiny_folder / name).read_bytes())
    code, logs = launched(
        2, tmp_path / "out", tmp_path / "broken", tmp_path / "log", dataset_name_or_path=few_samples,
        pipeline_parallel_degree=2,
    )  # fmt: skip
    assert code != 0
    line = (
        "error: sft: step 1: the loss must be finite, got nan; first on rank 1 the output of norm in micro-batch 0 "
        "after the parameter norm.weight. Lower the learning rate, or look at the data of this step."
    )
    assert logs.count(line) == 2, logs
