"""The last layer of a language model: scores of the vocabulary, or the loss without ever holding them."""

from __future__ import annotations

from typing import Any

import paddle

import fusionkit as fk


class LanguageModelHead(paddle.nn.Layer):  # type: ignore[misc]
    """logits = x @ weight; loss = cross entropy of the logits.

    Args:
        hidden_size: of x's last axis.
        vocab_size: number of logits.
        initializer_range: standard deviation of the float32 weight, [hidden_size, vocab_size], at the start.
    """

    def __init__(self, hidden_size: int, vocab_size: int, initializer_range: float = 0.02) -> None:
        super().__init__()
        normal = paddle.nn.initializer.Normal(std=initializer_range)
        self.weight = self.create_parameter([hidden_size, vocab_size], dtype="float32", default_initializer=normal)

    def forward(self, x: Any) -> Any:
        """[..., vocab_size] float32: computed in x's dtype, then widened for whoever samples from them."""
        logits = fk.fused_linear(x, self.weight)
        return logits if logits.dtype == paddle.float32 else logits.cast("float32")

    def loss(self, x: Any, labels: Any) -> tuple[Any, Any]:
        """(sum of the losses float32, number of targets int64) for labels [...] int; -100 is no target."""
        loss_sum, num_tokens = fk.fused_linear_cross_entropy(x, self.weight, labels)
        return loss_sum, num_tokens
