"""The parameters of a layer that several ranks share: groups, shapes, first values, and the marks that fleet reads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle
from paddle.distributed.fleet.base import topology
from paddle.distributed.fleet.layers.mpu.random import MODEL_PARALLEL_RNG, get_rng_state_tracker

from fusionkit.errors import argument_error
from fusionkit.parallel.parts import own_part
from fusionkit.world_size import world_size_of


def bind(layer: Any, mp_group: Any, weight_attr: Any, fuse_matmul_bias: bool, name: str | None) -> None:
    """The attributes that all four have, by fleet's names."""
    layer.model_parallel_group = group = group_of(type(layer).__name__, mp_group)
    layer.world_size = world_size_of(group)
    layer.rank = group.rank if layer.world_size > 1 else 0
    layer.is_mp = layer.world_size > 1
    layer.fuse_matmul_bias = fuse_matmul_bias
    layer._name, layer._weight_attr = name, weight_attr
    layer._dtype = layer._helper.get_default_dtype()


def create_columns(layer: Any, in_features: int, out_features: int, has_bias: bool | None) -> None:
    """weight [in_features, out_features / world_size], and a bias for these columns."""
    size = share_of(type(layer).__name__, "out_features", out_features, layer.world_size)
    layer.output_size_per_partition = size
    layer.weight = create_weight(layer, [in_features, size], layer._weight_attr, split_axis=1)
    layer.bias = create_bias(layer, size) if has_bias else None
    if has_bias:
        mark_shard(layer.bias, layer.is_mp, split_axis=0)


def create_rows(layer: Any, in_features: int, out_features: int, has_bias: bool) -> None:
    """weight [in_features / world_size, out_features], and a bias that all ranks have alike."""
    layer.in_features, layer.out_features = in_features, out_features
    size = share_of(type(layer).__name__, "in_features", in_features, layer.world_size)
    layer.input_size_per_partition = size
    layer.weight = create_weight(layer, [size, out_features], layer._weight_attr, split_axis=0)
    layer.bias = create_bias(layer, out_features) if has_bias else None


def require(layer: Any, condition: bool, name: str, rule: str, value: object) -> None:
    if not condition:
        raise argument_error(type(layer).__name__, name, rule, value, "sequence parallel")


def group_of(layer: str, mp_group: Any) -> Any:
    """mp_group, or the model-parallel group of fleet's topology.

    Raises:
        ValueError: neither is there.
        TypeError: mp_group is no group that this rank is in.
    """
    if mp_group is None and topology._HYBRID_PARALLEL_GROUP is None:
        advice = "Call fleet.init with an mp_degree first, or name a group"
        raise argument_error(layer, "mp_group", "a group", None, "fleet has no topology yet", advice)
    group = topology._HYBRID_PARALLEL_GROUP.get_model_parallel_group() if mp_group is None else mp_group
    if world_size_of(group) < 1 or world_size_of(group) > 1 and group.rank < 0:
        rule = "None, a Paddle group that this rank is in, or a Communicator"
        raise argument_error(layer, "mp_group", rule, f"{group!r:.60}", kind=TypeError)
    return group


def share_of(layer: str, name: str, size: int, world_size: int) -> int:
    """One rank's part of an axis.

    Raises:
        ValueError: the axis does not divide.
    """
    if size % world_size:
        raise argument_error(layer, name, f"a multiple of the group's {world_size} ranks", size)
    return size // world_size


def part_of(layer: str, name: str, size: int, rank: int, world_size: int) -> slice:
    """One rank's part of an axis that need not divide.

    Raises:
        ValueError: a rank would have none.
    """
    if size < world_size:
        raise argument_error(layer, name, f"at least the group's {world_size} ranks", size)
    return own_part(size, rank, world_size)


def create_weight(layer: Any, shape: list[int], attr: Any, split_axis: int) -> Any:
    """A rank's shard, drawn from random numbers of its own, with the marks that fleet and its checkpoints read."""
    numbers = shard_random_numbers(layer.model_parallel_group.rank) if layer.is_mp else contextlib.nullcontext()
    with numbers:
        weight = layer.create_parameter(shape=shape, attr=attr, dtype=layer._dtype, is_bias=False)
    mark_shard(weight, layer.is_mp, split_axis)
    return weight


def create_bias(layer: Any, size: int) -> Any:
    """Zeros, as Megatron starts."""
    zeros = paddle.nn.initializer.Constant(value=0.0)
    return layer.create_parameter(shape=[size], attr=zeros, dtype=layer._dtype, is_bias=True)


def mark_shard(parameter: Any, is_mp: bool, split_axis: int) -> None:
    parameter.is_distributed = is_mp
    if is_mp:
        parameter.split_axis = split_axis


@contextlib.contextmanager
def shard_random_numbers(rank: int) -> Iterator[None]:
    """fleet's random numbers of model-parallel ranks; without fleet, numbers from one that all ranks draw, and rank."""
    tracker = get_rng_state_tracker()
    if MODEL_PARALLEL_RNG in tracker.states_:
        with tracker.rng_state():
            yield
        return
    drawn = paddle.randint(0, 2**31 - 1, [1]).item()
    before = paddle.get_rng_state()
    paddle.seed(drawn + rank)
    try:
        yield
    finally:
        paddle.set_rng_state(before)
