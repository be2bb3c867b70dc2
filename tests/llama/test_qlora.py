"""Adapters over a base in 8 or 4 bits: their gradients, their losses, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import paddle
import peft
import pytest
import torch
from safetensors.numpy import load_file

import fusionkit as fk
from examples.llama2_13b.folders.layout import trainable
from examples.llama2_13b.folders.quantization import Format
from examples.llama2_13b.lora import LoraFlags, lora
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.llama import GRANULARITIES
from examples.llama2_13b.model.lora import LoraLlama
from examples.llama2_13b.model.packed_base import FLOAT_ENDS, PackedLinear
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.train import memory
from fusionkit.quantized_weight import quantize
from tests.llama.quantized_models import mixed_types, of_blocks, quantized
from tests.llama.test_lora import ADAPTER, LoraRun, assert_same_adapter, random_ids, transformers_model
from tests.llama.test_tensor_parallel import assert_close, batch

FORMATS = {"int8": Format("int8", None, True), "int4": Format("int4", 32, False)}


@pytest.fixture(scope="module", params=FORMATS.values(), ids=FORMATS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def dequantized(tiny_folder, tmp_path_factory, form):
    """A folder of floats with the values of the codes, and an adapter whose B is not zero."""
    folder = tmp_path_factory.mktemp("dequantized")
    model = Llama.from_pretrained(tiny_folder)
    for name, parameter in model.named_parameters():
        if "_proj" in name:
            values = quantize(parameter.numpy(), **vars(form)).dequantize()
            parameter.set_value(values.astype(np.float32))
    model.save_pretrained(folder)
    adapter = LoraLlama.with_new_adapter(folder, ADAPTER, 7)
    random = np.random.default_rng(3)
    for name, parameter in adapter.named_parameters():
        if "lora_B" in name:
            parameter.set_value(0.1 * random.standard_normal(parameter.shape).astype(np.float32))
    adapter.save_pretrained(folder / "adapter")
    return folder


@pytest.mark.parametrize("recompute", [None, *GRANULARITIES])
def test_gradients_are_those_of_peft_over_the_dequantized_base(tiny_folder, dequantized, form, recompute):
    """By another library's differentiation of float weights, which a folder of floats gave it."""
    ids = random_ids()
    model = LoraLlama.with_adapter(tiny_folder, dequantized / "adapter", packs=form, recompute=recompute)
    fk.ledger().reset()
    loss_sum, _ = model.loss(ids[:, :-1], ids[:, 1:])
    loss_sum.backward()
    assert any("transpose, for x's gradient" in way for _, _, way in fk.ledger().ways())
    loaded = peft.PeftModel.from_pretrained(transformers_model(dequantized), dequantized / "adapter", is_trainable=True)
    scores = loaded(torch.tensor(ids[:, :-1].numpy())).logits
    targets = torch.tensor(ids[:, 1:].numpy())
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    expected = {name.replace(".default", ""): value.grad for name, value in loaded.named_parameters()}
    rows = trainable(model.table)
    ours = {rows[name].parts[0].name: value.grad.numpy().T for name, value in model.named_parameters() if name in rows}
    assert_close(ours, {name: expected[name].numpy() for name in ours})


def test_training_is_that_over_the_dequantized_base(tiny_folder, dequantized, form):
    """To rounding: three steps of AdamW, and the adapter that they leave."""
    packed, floats = (
        LoraRun(folder, **how).train(3) for folder, how in ((tiny_folder, {"packs": form}), (dequantized, {}))
    )
    np.testing.assert_allclose(packed.losses, floats.losses, rtol=1e-5)
    assert_same_adapter(packed.values(), floats.values())


def test_the_base_is_held_in_packs_and_16_bits(tiny_folder, form):
    model = LoraLlama.with_new_adapter(tiny_folder, ADAPTER, 7, packs=form, dtype="bfloat16")
    packs = [each for _, one in model.named_sublayers() if isinstance(one, PackedLinear) for each in one.packs]
    assert len(packs) == 4 * 2 and {pack.dtype for pack in packs} == {form.dtype}
    named = dict(model.named_parameters())
    assert not [name for name in named if name.endswith("_proj.weight")]
    assert {named[name].dtype for name in FLOAT_ENDS} == {paddle.bfloat16}
    loss_sum, _ = model.loss(*batch(0, 512))
    loss_sum.backward()
    assert {name for name, one in named.items() if one.grad is not None} == trainable(model.table).keys()
    exact = sum(pack.payload.array.nbytes for pack in packs)
    exact += sum(one.size * one.element_size() for one in named.values())
    (predicted,) = memory.predict(model, Mesh(), memory.Step(2, 34, 1))
    assert predicted.parameters == exact
    assert (
        predicted.optimizer == 2 * predicted.gradients == 8 * sum(row.size for row in trainable(model.table).values())
    )


def test_codes_that_the_base_has_are_kept(tiny_folder, tmp_path):
    """Whatever is asked for. The base in floats has the values of the same codes."""
    folder = quantized(tiny_folder, tmp_path, "int4", 32, False)
    packed, floats = (LoraRun(folder, **how).train(2) for how in ({"packs": FORMATS["int8"]}, {}))
    packs = [each for _, one in packed.model.named_sublayers() if isinstance(one, PackedLinear) for each in one.packs]
    assert {(pack.dtype, pack.group_size) for pack in packs} == {("int4", 32)}
    np.testing.assert_allclose(packed.losses, floats.losses, rtol=1e-5)


def test_matrices_side_by_side_may_have_different_codes(tmp_path):
    """Those of a GGUF file, whose v has 8 bits where q and k have 4."""
    file = mixed_types(tmp_path, of_blocks(tmp_path))
    packed, floats = (LoraRun(file, **how).train(2) for how in ({"packs": FORMATS["int8"]}, {}))
    packs = packed.model.layers["0"].self_attn.qkv_proj.packs
    assert [(pack.dtype, pack.shape[1]) for pack in packs] == [("int4", 96), ("int8", 32)]
    np.testing.assert_allclose(packed.losses, floats.losses, rtol=1e-4)  # down_proj is rounded to 8 bits


@pytest.fixture
def qlora_flags(tiny_folder, few_samples, tmp_path, no_measuring, no_drawing):
    def make(**changes):
        values = {
            "model_name_or_path": str(tiny_folder),
            "dataset_name_or_path": str(few_samples),
            "output_dir": str(tmp_path / "run"),
            "src_length": 100,
            "max_length": 256,
            "zero_padding": True,
            "max_steps": 6,
            "learning_rate": 3e-2,
        }
        return LoraFlags(**values | changes)

    return make


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines() if '"loss"' in line]


def test_a_run_over_int8_learns_as_over_floats_and_peft_takes_its_adapter(tiny_folder, qlora_flags, tmp_path):
    """The loss falls by 0.1 and more. No step's loss moves by a twentieth of that where the base has 8 bits."""
    floats, packed, resumed = (tmp_path / name for name in ("floats", "packed", "resumed"))
    assert lora(qlora_flags(output_dir=str(floats))) == 0
    how = {"weight_dtype": "int8", "recompute": True, "save_steps": 3}
    assert lora(qlora_flags(output_dir=str(packed), **how)) == 0
    fell = losses(floats)[0] - min(losses(floats))
    assert fell > 0.1
    np.testing.assert_allclose(losses(packed), losses(floats), rtol=0, atol=fell / 20)
    assert json.loads((packed / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_folder)
    assert not list(packed.glob("**/model*"))
    files = [load_file(folder / "adapter_model.safetensors") for folder in (packed, packed / "checkpoint-3")]
    assert files[0].keys() == files[1].keys() and len(files[0]) == 2 * 2 * 7
    peft.PeftModel.from_pretrained(transformers_model(tiny_folder), packed)
    again = {"resume_from_checkpoint": str(packed / "checkpoint-3")}
    assert lora(qlora_flags(output_dir=str(resumed), **how, **again)) == 0
    assert losses(resumed) == losses(packed)[3:]
    with pytest.raises(ValueError, match="lora: --weight_dtype must be 'int8, groups of 32 with minimums' as in"):
        lora(qlora_flags(output_dir=str(tmp_path / "other"), **how | {"weight_dtype": "int4"}, **again))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"weight_dtype": "int2"}, "--weight_dtype must be int8 or int4, got int2"),
        ({"weight_dtype": "int4", "group_size": 48}, "--group_size must be 16 or 32 or 64 or 128 or 0, got 48"),
        ({"group_size": 64}, "--group_size must be left out without weight_dtype, got 64"),
        ({"symmetric": True}, "--symmetric must be left out without weight_dtype, got True"),
        (
            {"weight_dtype": "int4", "tensor_parallel_degree": 2},
            "--tensor_parallel_degree must be 1 with weight_dtype.*pipeline_parallel_degree divides the layers.* got 2",
        ),
        ({"weight_dtype": "int4", "sharding": "stage3"}, "--sharding must be stage1 or stage2 with weight_dtype"),
    ],
)
def test_what_a_pack_cannot_is_refused_with_what_can(qlora_flags, changes, message):
    with pytest.raises(ValueError, match=f"lora: {message}"):
        qlora_flags(**changes)


def test_where_no_pack_has_gradients_nothing_is_loaded(qlora_flags, monkeypatch, tmp_path):
    monkeypatch.setattr(LoraLlama, "from_pretrained", None)
    with fk.use_backend("eager"), pytest.raises(ValueError, match="--weight_dtype must be left out here, got int4; .*"):
        lora(qlora_flags(weight_dtype="int4"))
    assert not list((tmp_path / "run").glob("*"))
