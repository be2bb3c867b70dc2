"""The last layer of a language model: scores of the vocabulary, or the loss without ever holding them."""

from __future__ import annotations

from typing import Any

import paddle
from paddle.nn import functional as F

import fusionkit as fk
from fusionkit.parallel import collectives
from fusionkit.parallel.divided_lookup import check_ids, divided_lookup
from fusionkit.parallel.features import gather_features
from fusionkit.parallel.parameters import create_weight, part_of
from fusionkit.world_size import world_size_of

NAME = "LanguageModelHead"


class LanguageModelHead(paddle.nn.Layer):  # type: ignore[misc]
    """logits = x @ weight; loss = cross entropy of the logits.

    With a group the vocabulary is divided over its ranks, and no rank holds the logits of another while it trains.

    Args:
        hidden_size: of x's last axis.
        vocab_size: number of logits, of all ranks together.
        initializer_range: standard deviation of the float32 weight at the start.
        group: a Paddle group, or a `fusionkit.parallel.Communicator`; None: the vocabulary is whole.
        sequence_parallel: x is this rank's part of the tokens, its first axis, instead of replicated.

    Parameters: weight [hidden_size, vocab_size], or with a group [hidden_size, own part] with split_axis 1.
        `fusionkit.parallel.parts.own_part` says which entries a rank has.

    Raises:
        ValueError: vocab_size is below the group's size.
    """

    def __init__(
        self,
        hidden_size: int,
        vocab_size: int,
        initializer_range: float = 0.02,
        group: Any = None,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.is_mp = world_size_of(group) > 1
        self.model_parallel_group = group if self.is_mp else None
        self.vocab_size, self.sequence_parallel = vocab_size, sequence_parallel
        rank, world_size = (group.rank, world_size_of(group)) if self.is_mp else (0, 1)
        self._own = part_of(NAME, "vocab_size", vocab_size, rank, world_size)
        normal = paddle.ParamAttr(initializer=paddle.nn.initializer.Normal(std=initializer_range))
        self.weight = create_weight(self, [hidden_size, self._own.stop - self._own.start], normal, split_axis=1)

    def forward(self, x: Any) -> Any:
        """[..., vocab_size] float32: computed in x's dtype, then widened for whoever samples from them."""
        logits = fk.fused_linear(self._replicated(x), self.weight)
        if self.is_mp:
            logits = gather_features(logits, self.vocab_size, self.model_parallel_group)
        return logits if logits.dtype == paddle.float32 else logits.cast("float32")

    def loss(self, x: Any, labels: Any) -> tuple[Any, Any]:
        """(sum of the losses float32, number of targets int64) for labels [...] int; -100 is no target.

        Labels are of all tokens. The results are those of the whole vocabulary, on all ranks.
        """
        loss_sum, num_tokens = fk.fused_linear_cross_entropy(
            self._replicated(x), self.weight, labels, group=self.model_parallel_group
        )
        return loss_sum, num_tokens

    def embed(self, ids: Any, dtype: str) -> Any:
        """The embedding tied to this head: weight[:, id] of each, rounded to dtype.

        [tokens] of ids -> [tokens, hidden_size], or with sequence_parallel this rank's part of the tokens. The weight
        stays as the products read it. Transposing it costs ten times the look-up (Paddle 3.3.1, 32000 x 1024).

        Raises:
            ValueError: an id is not in [0, vocab_size), or the tokens do not divide.
        """
        if paddle.in_dynamic_mode():
            check_ids(NAME, ids, self.vocab_size)
        if not self.is_mp:
            return self._columns(ids).astype(dtype)
        group, scatters = self.model_parallel_group, self.sequence_parallel
        return divided_lookup(NAME, ids, self._own, self._columns, dtype, group, scatters)

    def _columns(self, numbers: Any) -> Any:
        if self.weight.dtype == paddle.float16:  # of which Paddle 3.3.1 gathers no columns on the host
            return F.embedding(numbers, self.weight.t())
        return paddle.gather(self.weight, numbers, axis=1).t()

    def _replicated(self, x: Any) -> Any:
        """Each rank goes on with its own columns, so the gradients of x are parts, which these two add up."""
        if not self.is_mp:
            return x
        gather = collectives.all_gather if self.sequence_parallel else collectives.identity
        return gather(x, self.model_parallel_group)
