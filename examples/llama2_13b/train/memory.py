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
from examples.llama2_13b.model.layout import Table, layer_of
from examples.llama2_13b.parallel.degrees import Degrees
from examples.llama2_13b.parallel.mesh import Mesh
from examples.llama2_13b.parallel.schedule import one_forward_one_backward
from examples.llama2_13b.parallel.sharding import owners
from examples.llama2_13b.train import kept
from examples.llama2_13b.train.kept import COMPOSED, DEVICE, FLOAT32, FUSED, Sizes
from fusionkit import TensorSpec, policy
from fusionkit.parallel.parts import own_part

MOMENTS = 2
# What a composed update holds beside parameter, gradient and moments, in parameters: scaled gradient, both moments as
# they become, denominator, and three of the quotient and the difference.
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
    degrees = degrees_of(mesh)
    kinds = kinds_of(model, mesh, step)
    return [_of_rank(rank, degrees, model, mesh, step, kinds) for rank in range(degrees.processes)]


def degrees_of(mesh: Mesh) -> Degrees:
    inside = mesh.pipeline.stages * mesh.sharding.size * mesh.tensor.size
    return Degrees(mesh.processes // inside, mesh.pipeline.stages, mesh.sharding.size, mesh.tensor.size)


def _of_rank(rank: int, degrees: Degrees, model: Llama, mesh: Mesh, step: Step, kinds: dict[str, str]) -> Memory:
    places = degrees.places(rank)
    stage = places["pipeline"]
    sizes = elements(model, mesh, stage, places["tensor"])
    trained = {name: size for name, size in sizes.items() if model.table[name].is_trainable}
    owner = owners_of(trained, model, mesh, stage)
    owned = [size for name, size in trained.items() if owner[name] == places["sharding"]]
    away = elsewhere(sizes, model, mesh, stage, places["sharding"])
    parameters = FLOAT32 * (sum(sizes.values()) - sum(away.values()))
    optimizer = FLOAT32 * MOMENTS * sum(owned)
    gradients = FLOAT32 * sum(owned)
    composed = kinds["fused_adamw"] == COMPOSED
    update = gradients + (FLOAT32 * COMPOSED_UPDATE * max(owned, default=0) if composed else 0)
    shapes = shapes_of(model, mesh, step, kinds, places["tensor"])
    divided = mesh.sharding.stage >= 2 and mesh.sharding.size > 1
    passes = Passes(model, mesh, stage, shapes, trained, gradients if divided else None, away)
    activations, backward = passes.walk(step.micro_batches)
    worst = max(backward, Moment(update, "the optimizer's update"), key=lambda moment: moment.beside)
    base = parameters + optimizer + tables_of(model)
    kept_then = gradients + (activations if worst is backward else 0)
    return Memory(
        rank, stage, parameters, gradients, optimizer, activations,
        max(0, base + worst.beside - parameters - optimizer - kept_then), base + worst.beside, worst.name,
    )  # fmt: skip


def elements(model: Llama, mesh: Mesh, stage: int, rank: int) -> dict[str, int]:
    """Of each parameter that a stage's rank of tensor has, in the model's order."""
    count, size = model.config.num_hidden_layers, mesh.tensor.size
    return {
        name: sum(part.shard(rank, size).size for part in parameter.parts)
        for name, parameter in model.table.items()
        if stage in _stages_of(name, model.table, mesh, count)
    }


def _stages_of(name: str, table: Table, mesh: Mesh, count: int) -> set[int]:
    """A tied embedding is on the first stage and on the last."""
    is_tied = name == "lm_head.weight" and not any(parameter.is_looked_up for parameter in table.values())
    return {0, mesh.pipeline.stages - 1} if is_tied else {mesh.pipeline.stage_of(layer_of(name, count), count)}


def owners_of(names: Iterable[str], model: Llama, mesh: Mesh, stage: int) -> dict[str, int]:
    """As `Sharding.owners` chooses them, by the largest part of each."""
    names, largest = list(names), elements(model, mesh, stage, 0)
    shared = [
        place
        for place, name in enumerate(names)
        if len(_stages_of(name, model.table, mesh, model.config.num_hidden_layers)) > 1
    ]
    found = owners([largest[name] for name in names], mesh.sharding.size, shared)
    return dict(zip(names, found, strict=True))


def elsewhere(sizes: dict[str, int], model: Llama, mesh: Mesh, stage: int, rank: int) -> dict[str, int]:
    """Elements of the matrices that other ranks of sharding keep between steps. An adapter's are on all."""
    if not mesh.sharding.divides_parameters:
        return {}
    frozen = [name for name in sizes if not model.table[name].is_trainable]
    owner = owners_of(frozen or sizes, model, mesh, stage)
    matrices = [name for name in owner if len(model.table[name].parts[0].shape) == 2]
    return {name: sizes[name] for name in matrices if owner[name] != rank}


def tables_of(model: Llama) -> int:
    """Bytes of the cosines and sines."""
    return 2 * model.config.max_position_embeddings * (model.config.head_dim // 2) * FLOAT32


@dataclass(frozen=True)
class Passes:
    """The forward and backward passes of a step on one stage, in the order of its schedule.

    Args:
        shapes: of a micro-batch on this rank.
        trained: elements of each parameter that has a gradient.
        divided: bytes of the gradients that stay on a rank from one pass to the next, where they leave in between.
        away: elements of each matrix that comes from another rank while its layer computes.
    """

    model: Llama
    mesh: Mesh
    stage: int
    shapes: Sizes
    trained: dict[str, int]
    divided: int | None
    away: dict[str, int]

    def walk(self, micro_batches: int) -> tuple[int, Moment]:
        """(the most that forward passes keep, the worst moment of a backward pass)."""
        pipeline = self.mesh.pipeline
        chunks = [self._modules(chunk) for chunk in range(pipeline.chunks)]
        ends = self.stage == pipeline.stages - 1 and pipeline.chunks == 1
        leaving = 0 if ends else self.shapes.stream  # the last output, which is on its way during a backward pass
        held, most, worst = 0, 0, Moment(0, "")
        gradients: dict[int, int] = {}
        for action in one_forward_one_backward(self.stage, pipeline.stages, micro_batches, pipeline.chunks):
            modules = chunks[action.chunk]
            if action.is_forward:
                held += sum(module.kept for module in modules)
                most = max(most, held)
                continue
            for place, module in reversed(list(enumerate(modules))):
                whole = sum(one.matrices for one in modules[max(0, place - 1) : place + 1])
                others = sum(gradients.values()) if self.divided is None else self.divided
                new = 0 if module.name in gradients else module.gradients
                beside = held + leaving + others + whole + module.passing
                worst = max(worst, Moment(beside, f"the backward pass of {module.name}"), key=lambda one: one.beside)
                gradients[module.name] = module.gradients
                held -= module.kept
                after = Moment(held + leaving + others + whole + new, f"the end of the backward pass of {module.name}")
                worst = max(worst, after, key=lambda one: one.beside)
        return most, worst

    def _modules(self, chunk: int) -> list[Module]:
        """Of a chunk, in the order of the forward pass."""
        model, pipeline, shapes = self.model, self.mesh.pipeline, self.shapes
        layers = pipeline.layers_of(self.stage, model.config.num_hidden_layers)[chunk]
        whole = [kept.of_layer(shapes, is_first=number == layers.start) for number in layers]
        modules = [
            self._module(f"layer {number}", size, f"layers.{number}.", kept.of_backward(shapes))
            for number, size in zip(layers, whole, strict=True)
        ]
        if model.recompute:
            modules = [
                replace(
                    module,
                    kept=kept.of_layer_recomputed(shapes, is_first=number == layers.start),
                    passing=module.passing + size,
                )
                for number, module, size in zip(layers, modules, whole, strict=True)
            ]
        if self.stage == 0 and chunk == 0:
            embedding = self._module("the embedding", kept.of_embedding(shapes), "embed_tokens.", 0)
            modules.insert(0, replace(embedding, passing=embedding.gradients, matrices=0))  # rows are looked up
        if self.stage == pipeline.stages - 1 and chunk == pipeline.chunks - 1:
            head = self._module("the head", kept.of_head(shapes), ("lm_head.", "norm."), kept.of_head_backward(shapes))
            modules.append(head)
        elif pipeline.stages > 1:  # it keeps no values, and its gradient comes
            modules.append(Module("what a stage hands on", 0, 0, shapes.stream, 0))
        return modules

    def _module(self, name: str, kept: int, prefix: str | tuple[str, ...], passing: int) -> Module:
        """Of the parameters whose names begin so."""
        gradients, matrices = (
            FLOAT32 * sum(size for one, size in sizes.items() if one.startswith(prefix))
            for sizes in (self.trained, self.away)
        )
        return Module(name, kept, gradients, passing, matrices)


@dataclass(frozen=True)
class Module:
    """A part of the model in a pass.

    Args:
        kept: bytes that its forward pass leaves.
        gradients: bytes of its parameters' gradients.
        passing: bytes that its backward pass needs and gives back, its first gradients included.
        matrices: bytes that come from other ranks for the pass, and those of the module before it meanwhile.
    """

    name: str
    kept: int
    gradients: int
    passing: int
    matrices: int


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
        "fused_adamw": kind(
            fk.fused_adamw,
            flat,
            flat,
            flat,
            flat,
            training=False,
            learning_rate=1e-3,
            beta1_power=0.9,
            beta2_power=0.999,
        ),  # fmt: skip
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
