"""How much memory each rank needs, said before the run has it: from the table of parameters, the mesh and the flags.

Parameters, gradients and optimizer state follow exactly from the table. What activations need follows from the order of
forward and backward passes, and from what each kernel keeps: `kept.py`. The peak is the largest sum at any moment of a
step: in a backward pass, or while the optimizer updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import paddle

import fusionkit as fk
from examples.llama2_13b.model import Llama
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.train import kept
from examples.llama2_13b.train.held import Held, held
from examples.llama2_13b.train.held_gradients import HeldGradients
from examples.llama2_13b.train.kept import COMPOSED, DEVICE, FLOAT32, FUSED, Sizes
from fusionkit import TensorSpec, policy
from fusionkit.eager.fused_adamw import PART_ELEMENTS
from fusionkit.parallel.parts import own_part
from fusionkit.parallel.pipeline_order import one_forward_one_backward

MOMENTS = 2
# What a composed update holds beside parameter, gradient and moments, in parts of a parameter: scaled gradient, both
# moments as they become, denominator, and three of the quotient and the difference.
COMPOSED_UPDATE = 7


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank.

    Args:
        rank: of all processes.
        stage: of the pipeline.
        parameters, gradients, optimizer: exact; gradients are those that the optimizer reads.
        activations: the most that forward passes keep at one time.
        workspace: what the worst moment has beyond the four.
        peak: the sum at the worst moment; activations may be gone by then.
        moment: which that is, in words.
    """

    rank: int
    stage: int
    parameters: int
    gradients: int
    optimizer: int
    activations: int
    workspace: int
    peak: int
    moment: str


@dataclass(frozen=True)
class Moment:
    """Bytes beside parameters and optimizer state at one moment of a step."""

    beside: int
    name: str


@dataclass(frozen=True)
class Step:
    """What decides a step's activations.

    Args:
        batch_size, seq_len: of a micro-batch.
        micro_batches: of a step on one copy of the model.
    """

    batch_size: int
    seq_len: int
    micro_batches: int


def predict(model: Llama, mesh: Mesh, step: Step) -> list[Memory]:
    """Of every rank, in their order. Any process computes it for all."""
    kinds, degrees = kinds_of(model, mesh, step), mesh.degrees
    return [_of_rank(rank, degrees, model, mesh, step, kinds) for rank in range(degrees.processes)]


def _of_rank(rank: int, degrees: Degrees, model: Llama, mesh: Mesh, step: Step, kinds: dict[str, str]) -> Memory:
    places = degrees.places(rank)
    stage = places["pipeline"]
    found = held(model, mesh, places)
    parameters = found.num_bytes(found.sizes.keys() - found.elsewhere)
    gradients, optimizer = found.num_bytes(found.owned), MOMENTS * found.num_bytes(found.owned)
    composed = kinds["fused_adamw"] == COMPOSED
    largest = max((found.num_bytes([name]) for name in found.owned), default=0)
    update = gradients + (COMPOSED_UPDATE * min(largest, FLOAT32 * PART_ELEMENTS) if composed else 0)
    shapes = shapes_of(model, mesh, step, kinds, places["tensor"])
    activations, backward = Passes(model, mesh, stage, shapes, found).walk(step.micro_batches)
    worst = max(backward, Moment(update, "the optimizer's update"), key=lambda moment: moment.beside)
    base = parameters + optimizer + tables_of(model)
    kept_then = gradients + (activations if worst is backward else 0)
    return Memory(
        rank, stage, parameters, gradients, optimizer, activations,
        max(0, base + worst.beside - parameters - optimizer - kept_then), base + worst.beside, worst.name,
    )  # fmt: skip


def tables_of(model: Llama) -> int:
    """Bytes of the cosines and sines."""
    return 2 * model.config.max_position_embeddings * (model.config.head_dim // 2) * FLOAT32


@dataclass(frozen=True)
class Passes:
    """The forward and backward passes of a step on one stage, in the order of its schedule.

    Args:
        shapes: of a micro-batch on this rank.
        held: of the parameters by this rank.
    """

    model: Llama
    mesh: Mesh
    stage: int
    shapes: Sizes
    held: Held

    def walk(self, micro_batches: int) -> tuple[int, Moment]:
        """(the most that forward passes keep, the worst moment of a backward pass)."""
        pipeline = self.mesh.pipeline
        chunks = [self._modules(chunk) for chunk in range(pipeline.chunks)]
        ends = self.stage == pipeline.stages - 1 and pipeline.chunks == 1
        leaving = 0 if ends else self.shapes.stream  # the last output, which is on its way during a backward pass
        divides = self.mesh.sharding.stage >= 2 and self.mesh.sharding.size > 1
        gradients = HeldGradients(self.held, divides, micro_batches)
        kept_now, most, worst = 0, 0, Moment(0, "")
        for action in one_forward_one_backward(self.stage, pipeline.stages, micro_batches, pipeline.chunks):
            modules = chunks[action.chunk]
            if action.is_forward:
                kept_now += sum(module.kept for module in modules)
                most = max(most, kept_now)
                continue
            for module in reversed(modules):
                others = module.borrowed + leaving
                beside = kept_now + gradients.num_bytes + others + module.passing
                during = Moment(beside, f"the backward pass of {module.name}")
                kept_now -= module.kept
                beside = kept_now + gradients.add(module.trained) + others
                after = Moment(beside, f"the end of the backward pass of {module.name}")
                worst = max(worst, during, after, key=lambda moment: moment.beside)
        return most, worst

    def _modules(self, chunk: int) -> list[Module]:
        """Of a chunk, in the order of the forward pass."""
        model, pipeline, shapes = self.model, self.mesh.pipeline, self.shapes
        layers = pipeline.layers_of(self.stage, model.config.num_hidden_layers)[chunk]
        modules = [half for number in layers for half in self._layer(number, is_first=number == layers.start)]
        if self.stage == 0 and chunk == 0:
            is_shared = model.config.tie_word_embeddings and pipeline.stages > 1
            name = "lm_head." if is_shared else "embed_tokens."
            embedding = self._module("the embedding", name, kept.of_embedding(shapes), 0)
            passing, borrowed = self.held.num_bytes(embedding.trained), self._borrowed(layers[:1])
            modules.insert(0, replace(embedding, passing=passing, borrowed=borrowed))
        if self.stage == pipeline.stages - 1 and chunk == pipeline.chunks - 1:
            head = self._module("the head", ("lm_head.", "norm."), kept.of_head(shapes), kept.of_head_backward(shapes))
            modules.append(replace(head, borrowed=self._borrowed(["lm_head", *layers[-1:]])))
        elif pipeline.stages > 1:  # it keeps no values, and its gradient comes
            borrowed = self._borrowed(layers[-2:])
            modules.append(Module("what a stage hands on", 0, frozenset(), shapes.stream, borrowed))
        return modules

    def _layer(self, number: int, is_first: bool) -> list[Module]:
        """Its halves, or all of it if all is computed again."""
        shapes, again = self.shapes, self.model.recompute
        name, prefix = f"layer {number}", f"layers.{number}."
        if again == "full":
            back = kept.of_layer_again(shapes, is_first)
            halves = [self._module(name, prefix, kept.of_layer_inputs(shapes, is_first), back)]
        else:
            attention, back = kept.of_attention(shapes, is_first, again), kept.of_attention_backward(shapes, again)
            mlp, mlp_back = kept.of_mlp(shapes), kept.of_mlp_backward(shapes)
            halves = [
                self._module(f"the attention of {name}", (f"{prefix}input", f"{prefix}self"), attention, back),
                self._module(f"the MLP of {name}", (f"{prefix}post", f"{prefix}mlp"), mlp, mlp_back),
            ]
        borrowed = self._borrowed([number] if is_first else [number - 1, number])
        return [replace(half, borrowed=borrowed) for half in halves]

    def _module(self, name: str, prefix: str | tuple[str, ...], kept: int, passing: int) -> Module:
        return Module(name, kept, frozenset(one for one in self.held.owners if one.startswith(prefix)), passing, 0)

    def _borrowed(self, layers: Iterable[int | str]) -> int:
        """Bytes of the matrices of these layers that other ranks own, and which a backward pass needs here."""
        prefixes = tuple(f"{layer}." if isinstance(layer, str) else f"layers.{layer}." for layer in layers)
        return self.held.num_bytes(name for name in self.held.elsewhere if name.startswith(prefixes))


@dataclass(frozen=True)
class Module:
    """A part of the model in a pass.

    Args:
        kept: bytes that its forward pass leaves.
        trained: names of its parameters that have gradients.
        passing: bytes that its backward pass needs and gives back, its first gradients included.
        borrowed: bytes of matrices that are here meanwhile, and with other ranks between steps.
    """

    name: str
    kept: int
    trained: frozenset[str]
    passing: int
    borrowed: int


def shapes_of(model: Llama, mesh: Mesh, step: Step, kinds: dict[str, str], rank: int) -> Sizes:
    config, size = model.config, mesh.tensor.size
    seq_len = step.seq_len + -step.seq_len % size
    tokens = step.batch_size * seq_len
    vocab = own_part(config.vocab_size, rank, size)
    return Sizes(
        batch_size=step.batch_size,
        seq_len=seq_len,
        own=tokens // size if mesh.tensor.divides_tokens else tokens,
        hidden=config.hidden_size,
        inner=config.intermediate_size // size,
        vocab=vocab.stop - vocab.start,
        heads=config.num_attention_heads // size,
        key_value_heads=config.num_key_value_heads // size,
        head_dim=config.head_dim,
        element=FLOAT32 if model.activation_dtype == "float32" else 2,
        is_divided=size > 1,
        kinds=kinds,
        is_frozen=not all(row.is_trainable for row in model.table.values()),
    )


def kinds_of(model: Llama, mesh: Mesh, step: Step) -> dict[str, str]:
    """What kind of kernel serves each op, asked without running it; `column` and `row` are the divided products."""
    dtype, group = model.activation_dtype, mesh.tensor.group
    s = shapes_of(model, mesh, step, {}, 0)

    def tensor(*shape: int, dtype: str = dtype) -> TensorSpec:
        return TensorSpec(shape, dtype)

    def kind(op: Any, *arguments: object, training: bool = True, **options: object) -> str:
        chosen = op.explain(*arguments, device=paddle.get_device(), training=training, **options).chosen
        return COMPOSED if chosen == "eager" else DEVICE if _is_plugin() else FUSED

    stream, norm = tensor(s.own, s.hidden), tensor(s.hidden, dtype="float32")
    q = tensor(s.batch_size, s.seq_len, s.heads, s.head_dim)
    k = tensor(s.batch_size, s.seq_len, s.key_value_heads, s.head_dim)
    angles = tensor(s.seq_len, s.head_dim // 2, dtype="float32")
    positions, rows = ((s.batch_size, s.seq_len), "int64"), ((s.batch_size, 1, s.seq_len, 1), "int32")
    gate, flat = tensor(s.tokens, s.inner), tensor(s.inner, dtype="float32")
    weight = tensor(s.hidden, 2 * s.inner, dtype="float32")
    update = {"learning_rate": 1e-3, "beta1_power": 0.9, "beta2_power": 0.999}
    found = {
        "fusion_rms_norm": kind(fk.fusion_rms_norm, stream, norm),
        "fusion_add_rms_norm": kind(fk.fusion_add_rms_norm, stream, stream, norm),
        "fusion_rope": kind(fk.fusion_rope, q, k, angles, angles, position_ids=TensorSpec(*positions)),
        "flash_attention": kind(fk.flash_attention, q, k, k, causal=True, startend_row_indices=TensorSpec(*rows)),
        "swiglu": kind(fk.swiglu, gate, gate),
        "fused_linear_cross_entropy": kind(
            fk.fused_linear_cross_entropy,
            tensor(s.tokens, s.hidden),
            tensor(s.hidden, s.vocab, dtype="float32"),
            TensorSpec((s.tokens,), "int64"),
            group=group,
        ),
        "fused_adamw": kind(fk.fused_adamw, *[flat] * 4, training=False, **update),
    }
    plain = kind(fk.fused_linear, tensor(s.tokens, s.hidden), weight)
    found |= {"column": plain, "row": plain}
    if group is not None and policy.mc2():
        narrow = tensor(s.inner, s.hidden, dtype="float32")
        if mesh.tensor.sequence_parallel:
            found["column"] = kind(fk.all_gather_matmul, stream, weight, group=group)
            found["row"] = kind(fk.matmul_reduce_scatter, gate, narrow, group=group)
        else:
            found["row"] = kind(fk.matmul_all_reduce, gate, narrow, group=group)
    return found


def _is_plugin() -> bool:
    """Whether the device is one that Paddle knows by a plugin alone, with the plugin's ops."""
    return paddle.get_device().partition(":")[0] in paddle.device.get_all_custom_device_type()


def describe(predicted: Sequence[Memory], stages: int) -> Iterator[str]:
    """The rank that needs most, before the first step."""
    if not predicted:
        return
    one = max(predicted, key=lambda memory: memory.peak)
    stage = f", stage {one.stage} of {stages}" if stages > 1 else ""
    yield (
        f"memory, predicted: {_gb(one.peak)} at most, on rank {one.rank}{stage}, in {one.moment}; parameters "
        f"{_gb(one.parameters)}, gradients {_gb(one.gradients)}, optimizer {_gb(one.optimizer)}, activations "
        f"{_gb(one.activations)}"
    )


def compare(predicted: Sequence[Memory], measured: Sequence[float]) -> Iterator[str]:
    """What the rank that had most has had, after the last step."""
    if not any(measured):
        return
    rank = max(range(len(measured)), key=measured.__getitem__)
    what = measured_of()
    beside = f"; predicted {_gb(predicted[rank].peak)}" if predicted else ""
    yield f"memory, measured: {_gb(measured[rank])} at most, on rank {rank}, {what}{beside}"


def measured_of() -> str:
    """What a measured peak is of."""
    return "of the whole process, code and data included" if paddle.get_device() == "cpu" else "of the device"


def _gb(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
