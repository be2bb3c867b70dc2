"""LoRA against its formula, against PEFT over transformers, and divided over ranks against one process."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import paddle
import peft
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tqdm import tqdm
from transformers import LlamaForCausalLM

import fusionkit as fk
from examples.llama2_13b import merge as merge_command
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.adapter_config import TARGETS, AdapterConfig
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import Part, elements, layout, trainable
from examples.llama2_13b.merge import MergeFlags, merge
from examples.llama2_13b.model import Llama
from examples.llama2_13b.model.llama import GRANULARITIES
from examples.llama2_13b.model.lora import Factors, Fork, LoraLlama, Sum, Update
from examples.llama2_13b.parallel import gradients
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.pipeline import PipelineParallel
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel
from examples.llama2_13b.train import training_state
from examples.llama2_13b.train.metrics import model_flops
from examples.llama2_13b.train.optimizer import AdamW
from fusionkit.parallel import collectives
from fusionkit.parallel.parity import run_ranks
from tests.llama import test_sharding
from tests.llama.meshes import making_a_model, tensors_of
from tests.llama.test_tensor_parallel import FUSED, Run, assert_close, batch, require_same_training

STEPS = 3
ADAPTER = AdapterConfig(rank=4, alpha=8)


class LoraRun(Run):
    """The adapter of a model and its optimizer on one rank: new, or from a checkpoint."""

    def __init__(self, base, shards=ALONE, checkpoint=None, adapter=ADAPTER, mesh=None, **how):
        with making_a_model(mesh.world if mesh else shards.group):
            if checkpoint is None:
                self.model = LoraLlama.with_new_adapter(base, adapter, 7, shards=shards, **how)
            else:
                self.model = LoraLlama.with_adapter(base, checkpoint, shards=shards, **how)
        self.mesh = mesh or Mesh(tensor=shards)
        self.optimizer = AdamW(self.model, self.mesh, 0.9, 0.99, 1e-8, weight_decay=0.1, max_grad_norm=1.0)
        state = training_state.load(checkpoint) if checkpoint else None
        if state:
            self.optimizer.load(checkpoint, state.optimizer)
        self.shards, self.step, self.losses, self.gradients = shards, state.step if state else 0, [], {}

    def whole(self, value_of):
        """Of the adapter: by name on disk, all ranks put together."""
        found, rows = {}, trainable(self.model.table)
        for name, parameter in self.model.named_parameters():
            if name in rows:
                found |= tensors_of(rows[name], self.shards, parameter, value_of(parameter))
        return found

    def values(self):
        return self.whole(lambda parameter: parameter)


def on_two(run, sequence_parallel=True):
    return run_ranks(2, lambda rank, communicator: run(TensorParallel(communicator, sequence_parallel)))


def random_ids():
    return paddle.to_tensor(np.random.default_rng(5).integers(0, 512, (2, 33)))


def logits(model):
    model.eval()
    with paddle.no_grad():
        return model(random_ids()).numpy()


def theirs(model):
    with torch.no_grad():
        return model(torch.tensor(random_ids().numpy())).logits.numpy()


def transformers_model(folder):
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def alone(tiny_folder):
    return LoraRun(tiny_folder).train(STEPS)


@pytest.fixture(scope="module")
def trained(alone, tmp_path_factory):
    """The folder of an adapter after some steps."""
    folder = tmp_path_factory.mktemp("adapter")
    alone.model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("sequence_parallel", [True, False], ids=["sequence", "replicated"])
def test_two_ranks_train_an_adapter_as_one(tiny_folder, alone, sequence_parallel):
    fk.ledger().reset()
    runs = on_two(lambda shards: LoraRun(tiny_folder, shards).train(STEPS), sequence_parallel)
    expected = {"all_gather_matmul", "matmul_reduce_scatter"} if sequence_parallel else {"matmul_all_reduce"}
    assert {op for op, _, _ in fk.ledger()} & FUSED == expected
    assert {backend for op, backend, _ in fk.ledger() if op == "fused_linear"} == {"cpu"}
    require_same_training(runs, alone)
    for values in on_two(lambda shards: LoraRun(tiny_folder, shards).train(STEPS).values(), sequence_parallel):
        assert_same_adapter(values, alone.values())


def assert_same_adapter(values, expected):
    """Moved by AdamW, which takes the sign of gradients that may be rounding alone: as far as all of it has moved."""
    assert values.keys() == expected.keys() and len(values) == 2 * 2 * len(TARGETS)
    for name, value in expected.items():
        assert name.endswith("lora_A.weight") or np.abs(values[name]).max() > 1e-3, name  # none is left at zero
        np.testing.assert_allclose(values[name], value, rtol=0, atol=1e-3 * np.abs(value).max(), err_msg=name)


class MeshRun(test_sharding.Run):
    """The same over a mesh, on rows that its copies share."""

    @staticmethod
    def open_model(base, **how):
        return LoraLlama.with_new_adapter(base, ADAPTER, 7, **how)


@pytest.mark.parametrize("layout", ["sharding2-tensor2", "stage2-sharding2-tensor2", "stage3-sharding2-tensor2"])
def test_copies_that_divide_the_optimizer_train_an_adapter_as_one(tiny_folder, layout, monkeypatch):
    """To the last step, in which a copy has no rows. No rank has moments of frozen weights."""
    monkeypatch.setattr(gradients, "BUCKET_ELEMENTS", 500)  # two or three factors
    (degrees, stage), steps = test_sharding.LAYOUTS[layout], test_sharding.STEPS

    def train(mesh):
        run = MeshRun(tiny_folder, mesh).train(steps)
        return run, run.weights()

    runs = test_sharding.on_mesh(degrees, train, stage)
    one = MeshRun(tiny_folder, Mesh()).train(steps)
    expected = one.weights()
    names = {part.name for row in trainable(one.model.table).values() for part in row.parts}
    base = load_base(tiny_folder)
    for run, weights in runs:
        np.testing.assert_allclose(run.losses, one.losses, rtol=1e-5)
        np.testing.assert_allclose(run.norms, one.norms, rtol=1e-4)
        held = run.moments()
        assert held and held.keys() < trainable(run.model.table).keys()
        divided = run.mesh.sharding.divides_parameters
        assert (len(run.held_parameters()) < len(run.model.parameters())) == divided
        if run.mesh.sharding.rank == 0 or not divided:
            assert weights.keys() == expected.keys() == names | base.keys()
        for name in weights.keys() & base.keys():
            np.testing.assert_array_equal(weights[name], base[name], err_msg=name)
        apart, moved = (
            np.sqrt(sum(np.sum((expected[name] - factor * weights[name]) ** 2) for name in names)) for factor in (1, 0)
        )
        assert apart < 1e-4 * moved  # of values that are their first ones and what AdamW added


def load_base(folder):
    return {name: value for file in folder.glob("model-*.safetensors") for name, value in load_file(file).items()}


def test_only_the_adapter_gets_gradients_and_state(tiny_folder):
    run = LoraRun(tiny_folder)
    adapter = trainable(run.model.table).keys()
    assert len([name for name in adapter if "lora" in name]) == len(adapter) == 4 * len(TARGETS)
    loss_sum, _ = run.model.loss(*batch(0, 512))
    loss_sum.backward()
    assert {name for name, value in run.model.named_parameters() if value.grad is not None} == adapter
    run.optimizer.step(1e-2)
    state = run.optimizer._adamw.state_dict()
    assert sum(value.size for name, value in state.items() if "moment" in name) == 2 * adapter_size(tiny_folder)
    base = dict(Llama.from_pretrained(tiny_folder).named_parameters())
    for name, value in run.model.named_parameters():
        assert name in adapter or np.array_equal(value.numpy(), base[name].numpy()), name


def test_only_the_adapter_is_reduced(tiny_folder, monkeypatch):
    """Two copies, one step: what travels between them are as many numbers as the adapter has."""
    start, sent = collectives.start_sum, []
    monkeypatch.setattr(collectives, "start_sum", lambda x, *group: (sent.append(x.size), start(x, *group))[1])
    test_sharding.on_mesh(Degrees(data=2), lambda mesh: MeshRun(tiny_folder, mesh).train(1))
    assert sum(sent) == 2 * adapter_size(tiny_folder)


def adapter_size(folder):
    """Of rank 4: each of A and B has 4 numbers for a column or a row of its matrix."""
    return sum(4 * sum(shape) for shape in shapes(folder))


def shapes(folder):
    table = layout(Llama.from_pretrained(folder).config)
    return [part.shape for row in table.values() for part in row.parts if "_proj" in part.name]


def test_the_first_values_are_pefts_and_add_nothing(tiny_folder):
    model = LoraLlama.with_new_adapter(tiny_folder, ADAPTER, seed=1)
    np.testing.assert_array_equal(logits(model), logits(Llama.from_pretrained(tiny_folder)))
    peft_model = peft.get_peft_model(transformers_model(tiny_folder), peft_config(TARGETS))
    expected = dict(peft_model.named_parameters())
    for name, row in trainable(model.table).items():
        value = dict(model.named_parameters())[name].numpy()
        other = expected[row.parts[0].name.replace(".weight", ".default.weight")].detach().numpy()
        assert value.T.shape == other.shape
        largest = np.abs(other).max()
        assert np.abs(value).max() == pytest.approx(largest, rel=0.1), name  # uniform: both reach their bound nearly


def peft_config(targets, **changes):
    return peft.LoraConfig(r=4, lora_alpha=6, target_modules=list(targets), task_type="CAUSAL_LM", **changes)


@pytest.mark.parametrize("dtype", [None, "bfloat16"], ids=["float32", "bfloat16"])
def test_peft_loads_our_adapter_and_gives_our_logits(tiny_folder, alone, tmp_path, dtype):
    alone.model.save_pretrained(tmp_path, dtype)
    ours = logits(LoraLlama.with_adapter(tiny_folder, tmp_path))
    loaded = peft.PeftModel.from_pretrained(transformers_model(tiny_folder), tmp_path)
    assert np.abs(ours - logits(Llama.from_pretrained(tiny_folder))).max() > 0.01
    np.testing.assert_allclose(theirs(loaded), ours, rtol=0, atol=1e-5)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {value.dtype.name for value in tensors.values()} == {dtype or "float32"}
    assert "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight" in tensors
    assert all(np.any(value) for value in tensors.values())


@pytest.mark.parametrize("targets", [TARGETS, ("v_proj", "q_proj"), ("o_proj", "up_proj")], ids=",".join)
def test_we_load_an_adapter_that_peft_wrote(tiny_folder, tmp_path, targets):
    """B is random: PEFT draws it where `init_lora_weights` is False."""
    written = peft.get_peft_model(transformers_model(tiny_folder), peft_config(targets, init_lora_weights=False))
    written.save_pretrained(tmp_path)
    expected = theirs(written.eval())
    ours = LoraLlama.with_adapter(tiny_folder, tmp_path)
    assert set(ours.adapter.targets) == set(targets) and ours.adapter.scale == 1.5
    np.testing.assert_allclose(logits(ours), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    ours.save_pretrained(tmp_path / "again")
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path, tmp_path / "again"))
    assert one.keys() == other.keys()
    for name, value in one.items():
        np.testing.assert_array_equal(other[name], value, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_is_the_sum_in_the_dtype_of_the_model(tiny_folder, trained, tmp_path, dtype):
    base = tmp_path / "base"
    Llama.from_pretrained(tiny_folder).save_pretrained(base, dtype)
    (base / "tokenizer.json").write_bytes((tiny_folder / "tokenizer.json").read_bytes())
    assert merge(MergeFlags(str(base), str(trained), str(tmp_path / "merged"))) == 0
    before, after = (weights_in_float64(folder) for folder in (base, tmp_path / "merged"))
    adapter = {
        name: value.astype(np.float64) for name, value in load_file(trained / "adapter_model.safetensors").items()
    }
    assert before.keys() == after.keys() and len(before) == 21
    rounding = {"float32": 2.0**-23, "bfloat16": 2.0**-8}[dtype]
    for name, value in before.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" not in adapter:
            np.testing.assert_array_equal(after[name], value, err_msg=name)
            continue
        exact = value + 2.0 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
        np.testing.assert_allclose(after[name], exact, rtol=rounding, atol=1e-6 * np.abs(exact).max(), err_msg=name)
    assert json.loads((tmp_path / "merged/config.json").read_text())["torch_dtype"] == dtype
    assert (tmp_path / "merged/tokenizer.json").exists()


def weights_in_float64(folder):
    return {name: value.astype(np.float64) for name, value in load_base(folder).items()}


def test_merged_equals_unmerged_here_and_in_transformers(tiny_folder, trained, tmp_path):
    assert merge(MergeFlags(str(tiny_folder), str(trained), str(tmp_path / "merged"))) == 0
    unmerged = logits(LoraLlama.with_adapter(tiny_folder, trained))
    np.testing.assert_allclose(logits(Llama.from_pretrained(tmp_path / "merged")), unmerged, rtol=0, atol=1e-5)
    np.testing.assert_allclose(theirs(transformers_model(tmp_path / "merged")), unmerged, rtol=0, atol=1e-5)


def test_a_checkpoint_of_two_ranks_goes_on_alone_and_back(tiny_folder, alone, tmp_path):
    def two_steps(shards):
        run = LoraRun(tiny_folder, shards).train(2)
        run.save(tmp_path / "checkpoint-2")
        return run.values(), run.moments()

    values, moments = on_two(two_steps)[0]
    resumed = LoraRun(tiny_folder, checkpoint=tmp_path / "checkpoint-2")
    assert_equal(resumed.values(), values)
    assert_equal(resumed.moments(), moments)
    assert resumed.train(1).losses == pytest.approx(alone.losses[2:], rel=1e-5)
    resumed.save(tmp_path / "checkpoint-3")

    def read_back(shards):
        run = LoraRun(tiny_folder, shards, checkpoint=tmp_path / "checkpoint-3")
        return run.values(), run.moments()

    for values, moments in on_two(read_back):
        assert_equal(values, resumed.values())
        assert_equal(moments, resumed.moments())


def assert_equal(one, other):
    assert one.keys() == other.keys() and len(one) == 4 * len(TARGETS)
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


@pytest.mark.parametrize("recompute", [None, *GRANULARITIES])
@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
def test_gradients_are_those_of_peft(tiny_folder, trained, tmp_path, tied, recompute):
    """Of the sum of the losses, by another library's differentiation. A tied head is as frozen as the embedding."""
    if tied:
        config = dataclasses.replace(LlamaConfig.from_json(tiny_folder / "config.json"), tie_word_embeddings=True)
        tiny_folder = tmp_path / "tied"
        Llama(config).save_pretrained(tiny_folder)
    model = LoraLlama.with_adapter(tiny_folder, trained, recompute=recompute)
    ids = random_ids()
    loss_sum, _ = model.loss(ids[:, :-1], ids[:, 1:])
    loss_sum.backward()
    loaded = peft.PeftModel.from_pretrained(transformers_model(tiny_folder), trained, is_trainable=True)
    scores = loaded(torch.tensor(ids[:, :-1].numpy())).logits
    targets = torch.tensor(ids[:, 1:].numpy())
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum").backward()
    expected = {name.replace(".default", ""): value.grad for name, value in loaded.named_parameters()}
    rows = trainable(model.table)
    ours = {rows[name].parts[0].name: value.grad.numpy().T for name, value in model.named_parameters() if name in rows}
    assert len(ours) == 4 * len(TARGETS)
    assert_close(ours, {name: expected[name].numpy() for name in ours})


def test_recomputation_changes_no_loss_with_dropout(tiny_folder):
    adapter = AdapterConfig(rank=4, alpha=8, dropout=0.3)
    runs = {}
    for recompute in (None, *GRANULARITIES):
        paddle.seed(3)
        runs[recompute] = LoraRun(tiny_folder, adapter=adapter, recompute=recompute).train(2)
        assert runs[recompute].losses == runs[None].losses
    assert runs["full"].losses[1] != LoraRun(tiny_folder, recompute="full").train(2).losses[1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["wanted", "frozen"])
def test_the_sum_in_16_bits_is_rounded_once(dtype, is_frozen):
    """Against float32, which holds the sum of two such numbers nearly. The gradient goes to both as it is."""
    paddle.seed(0)
    x, y = (paddle.randn([7, 48]).cast(dtype) for _ in range(2))
    x.stop_gradient, y.stop_gradient = is_frozen, False
    total = Sum.apply(x, y)
    expected = (x.cast("float32") + y.cast("float32")).cast(dtype)
    np.testing.assert_array_equal(total.cast("float32").numpy(), expected.cast("float32").numpy())
    (total.cast("float32") * paddle.arange(48, dtype="float32")).sum().backward()
    assert (x.grad is None) == is_frozen
    for tensor in (y,) if is_frozen else (x, y):
        np.testing.assert_array_equal(tensor.grad.cast("float32").numpy(), np.tile(np.arange(48), (7, 1)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_gradients_of_a_layer_and_its_update_are_added_with_one_rounding(dtype):
    paddle.seed(0)
    x, done, dother = (paddle.randn([7, 48]).cast(dtype) for _ in range(3))
    x.stop_gradient = False
    fk.ledger().reset()
    one, other = Fork.apply(x)
    assert one.data_ptr() == other.data_ptr() == x.data_ptr()
    paddle.autograd.backward([one, other], [done, dother])
    assert {(op, backend) for op, backend, _ in fk.ledger()} == {("fusion_add_rms_norm", "cpu")}
    expected = (done.cast("float32") + dother.cast("float32")).cast(dtype)
    np.testing.assert_array_equal(x.grad.cast("float32").numpy(), expected.cast("float32").numpy())


@pytest.mark.parametrize("name", ["self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"])
def test_output_and_gradients_of_a_layer_in_bfloat16_are_those_of_float64(tiny_folder, name):
    """Where the update is as large as the layer's own output. At most five roundings of 2^-9 meet in one value."""
    paddle.seed(1)
    model = LoraLlama.with_new_adapter(tiny_folder, ADAPTER, 7, dtype="bfloat16")
    layer = dict(model.layers["0"].named_sublayers())[name]
    layer.weight.set_value(paddle.randn(layer.weight.shape) * layer.weight.shape[0] ** -0.5)
    pairs = list(layer.lora.children())
    for pair in pairs:
        pair.lora_B.set_value(paddle.randn(pair.lora_B.shape))
    x, dy = (paddle.randn([19, width]).cast("bfloat16") for width in layer.weight.shape)
    x.stop_gradient = False
    fk.ledger().reset()
    y = layer(x)
    y.backward(dy)
    assert {backend for _, backend, _ in fk.ledger()} == {"cpu"}
    assert layer.weight.grad is None

    def near(found, exact):
        error = np.linalg.norm(in_float64(found) - exact)
        assert error <= 5 * 2.0**-9 * np.linalg.norm(exact)

    exact_x, exact_dy, weight = in_float64(x), in_float64(dy), in_float64(layer.weight)
    exact_y, exact_dx, first = exact_x @ weight, exact_dy @ weight.T, 0
    for pair in pairs:
        a, b = in_float64(pair.lora_A), in_float64(pair.lora_B)
        columns = slice(first, first := first + b.shape[1])
        exact_y[:, columns] += 2 * exact_x @ a @ b
        exact_dx += 2 * exact_dy[:, columns] @ b.T @ a.T
        near(pair.lora_A.grad, 2 * exact_x.T @ exact_dy[:, columns] @ b.T)
        near(pair.lora_B.grad, 2 * (exact_x @ a).T @ exact_dy[:, columns])
    near(y, exact_y)
    near(x.grad, exact_dx)


def in_float64(tensor):
    return tensor.detach().cast("float32").numpy().astype(np.float64)


def test_dropout_drops_its_part_and_keeps_the_mean():
    paddle.seed(0)
    adapter = AdapterConfig(rank=1, alpha=1, dropout=0.25)
    factors = {"q_proj": Factors(np.zeros((100, 1), np.float32), np.zeros((1, 4), np.float32))}
    update = Update((Part("q_proj.weight", (4, 100)),), factors, adapter, ALONE)
    dropped = update._dropped(paddle.ones([100, 100])).numpy()
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}
    assert dropped.mean() == pytest.approx(1, abs=0.03)  # five deviations of 10,000 draws
    update.eval()
    assert update._dropped(paddle.ones([2, 2])).numpy().all()


def test_a_stage_of_a_pipeline_adapts_the_layers_that_it_has(tiny_folder):
    last = PipelineParallel(Rank(1, 2), 1)
    model = LoraLlama.with_new_adapter(tiny_folder, ADAPTER, 7, pipeline=last)
    whole = dict(LoraLlama.with_new_adapter(tiny_folder, ADAPTER, 7).named_parameters())
    own = {name: value for name, value in model.named_parameters() if "lora_" in name}
    assert {name.split(".")[1] for name in own} == {"1"} and len(own) == 2 * len(TARGETS)
    for name, value in own.items():
        np.testing.assert_array_equal(value.numpy(), whole[name].numpy())


class Rank:
    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size


def test_frozen_weights_cost_two_thirds(tiny_folder):
    """Forward and the gradient of the input; an adapter's weights have a gradient of their own too."""
    model = LoraLlama.with_new_adapter(tiny_folder, ADAPTER, 7)
    plain = layout(model.config)
    adapter = sum(elements(trainable(model.table)).values())
    both = model_flops(model.config, model.table, [1])
    attention = 6 * 2 * 4 * 12
    assert both == pytest.approx((model_flops(model.config, plain, [1]) - attention) * 2 / 3 + 6 * adapter + attention)


def changed(folder, tmp_path, **fields):
    """The adapter's folder with other fields in its configuration."""
    other = tmp_path / "changed"
    other.mkdir()
    (other / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    content = json.loads((folder / "adapter_config.json").read_text()) | fields
    (other / "adapter_config.json").write_text(json.dumps(content))
    return other


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"use_dora": True}, "use_dora must be null, false or empty, got true; peft's merge_and_unload"),
        ({"use_rslora": True}, "use_rslora must be null, false or empty, got true"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out must be null"),
        ({"modules_to_save": ["embed_tokens"]}, r'modules_to_save must be .* got \["embed_tokens"\]'),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern must be"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern must be"),
        ({"layers_to_transform": [0]}, "layers_to_transform must be"),
        ({"layers_to_transform": 0}, "layers_to_transform must be"),
        ({"a_field_of_tomorrow": 1}, "a_field_of_tomorrow must be null, false or empty, got 1"),
        ({"bias": "lora_only"}, 'bias must be "none", got "lora_only"'),
        ({"peft_type": "IA3"}, 'peft_type must be "LORA"'),
        ({"init_lora_weights": "pissa"}, "init_lora_weights must be true or false"),
        ({"target_modules": ["q_proj", "lm_head"]}, "target_modules must be of .*fused with the head.*got lm_head"),
        ({"target_modules": ["wte"]}, "target_modules must be of q_proj, .*down_proj, got wte"),
        ({"target_modules": "all-linear"}, "target_modules must be a list"),
        ({"target_modules": []}, "target_modules must be at least one of"),
        ({"target_modules": ["q_proj"]}, "must not be there; the model has no place for it; the adapter must be for"),
        ({"r": 8}, r"lora_A.weight must be \[8, 48\], got \[4, 48\]"),
        ({"r": 0}, "r must be an integer of at least 1, got 0"),
        ({"lora_alpha": 0}, "lora_alpha must be a number above 0"),
        ({"lora_alpha": None}, "lora_alpha must be a number above 0, got None"),
        ({"lora_dropout": 1}, r"lora_dropout must be in \[0, 1\), got 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_adapter_of_another_kind_is_refused(tiny_folder, trained, tmp_path, fields, message):
    folder = changed(trained, tmp_path, **fields)
    with pytest.raises(ValueError, match=message):
        LoraLlama.with_adapter(tiny_folder, folder)
    with pytest.raises(ValueError, match=message):
        merge(MergeFlags(str(tiny_folder), str(folder), str(tmp_path / "merged")))
    assert not (tmp_path / "merged").exists()


def test_an_adapter_for_another_model_is_refused(tiny_folder, trained, tmp_path):
    other = changed(trained, tmp_path)
    tensors = load_file(trained / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file(tensors | {name: np.zeros([4, 64], np.float32)}, other / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lora_A.weight must be \[4, 48\], got \[4, 64\].*base_model_name_or_path"):
        LoraLlama.with_adapter(tiny_folder, other)


@pytest.mark.parametrize("missing", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_without_an_adapter_is_named(tiny_folder, trained, tmp_path, missing):
    folder = changed(trained, tmp_path)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"{missing}: not found.*peft's save_pretrained"):
        LoraLlama.with_adapter(tiny_folder, folder)


@pytest.mark.parametrize("read", [Llama.from_pretrained, Tokenizer.from_pretrained])
def test_an_adapter_in_place_of_a_model_is_named_as_one(trained, read):
    with pytest.raises(FileNotFoundError, match="config.json: not found. The folder holds an adapter. merge makes a"):
        read(trained)


def test_progress_that_is_drawn_costs_no_tensor(tiny_folder, trained, tmp_path, monkeypatch):
    """A large model is drawn again and again: here after each tensor."""
    monkeypatch.setattr(merge_command, "tqdm", lambda **given: tqdm(**{**given, "mininterval": 0.0, "miniters": 1}))
    assert merge(MergeFlags(str(tiny_folder), str(trained), str(tmp_path / "merged"))) == 0
    assert set(weights_in_float64(tmp_path / "merged")) == set(weights_in_float64(tiny_folder))


def test_merge_replaces_nothing(tiny_folder, trained, tmp_path):
    (tmp_path / "kept").write_text("")
    with pytest.raises(ValueError, match="merge: --output_path must be empty or not there"):
        merge(MergeFlags(str(tiny_folder), str(trained), str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
