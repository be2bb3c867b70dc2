"""The Llama, Mistral or Qwen2, top to bottom: they differ in biases and in which keys a token sees.

Shapes in names:
    B  batch size                       N  query heads (num_attention_heads)
    S  sequence length                  K  key-value heads (num_key_value_heads)
    H  hidden size                      D  elements of a head (head_dim)
    I  intermediate size of the MLP     V  vocabulary
    T  tokens of the batch, row after row: B * S. With tensor and sequence parallelism a rank has only its part of them
       between the products, and always only its own of N, K, I and V; see tensor_parallel.py.

The parameters are float32; the arithmetic is `dtype`: the embedding is cast once, and from there on every step is a
fused op. Residual sums happen inside the norms, so a layer takes and returns the pair (x, residual).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import paddle
from paddle import Tensor, nn

import fusionkit as fk
from examples.llama2_13b.folders import checkpoint
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.layout import Table, elements, layout
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.folders.safetensors_folder import MAX_SHARD_BYTES
from examples.llama2_13b.folders.safetensors_writer import Files
from examples.llama2_13b.folders.stored_dtypes import word
from examples.llama2_13b.parallel.divided_layers import DividedLayers, Turn
from examples.llama2_13b.parallel.pipeline import ONE_STAGE, PipelineParallel
from examples.llama2_13b.parallel.sharding import UNSHARDED, Sharding
from examples.llama2_13b.parallel.tensor_parallel import ALONE, TensorParallel
from examples.llama2_13b.parallel.trace import Trace
from examples.llama2_13b.parallel.writers import Writers
from fusionkit.nn import RotaryEmbedding, recompute

DTYPES = ("float32", "bfloat16", "float16")
# What can be computed again instead of being kept: a layer, its attention with both products, or what is between these.
# The names are PaddleNLP's.
GRANULARITIES = ("full", "full_attn", "core_attn")

# (layer's number, q_BSND, k_BSKD, v_BSKD) -> out_BSND. Training sees the whole sequence; a decoder reads its cache.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def own_counts(config: LlamaConfig, shards: TensorParallel) -> list[int]:
    """A rank's query heads, key-value heads and columns of the MLP."""
    names = ("num_attention_heads", "num_key_value_heads", "intermediate_size")
    return shards.shares(**{name: getattr(config, name) for name in names})


class Attention(nn.Layer):
    """Projects to queries, keys and values, rotates the first two, attends, projects back."""

    def __init__(self, config: LlamaConfig, index: int, shards: TensorParallel, recompute: str | None) -> None:
        super().__init__()
        self.index = index
        self.recompute = recompute
        heads, key_value_heads, _ = own_counts(config, shards)
        self.heads = [heads, key_value_heads, key_value_heads]
        self.head_dim = config.head_dim
        queries, keys = (count * config.head_dim for count in (config.num_attention_heads, config.num_key_value_heads))
        deviation = config.initializer_range
        self.qkv_proj = shards.column(config.hidden_size, queries + 2 * keys, deviation, config.has_qkv_bias)
        self.o_proj = shards.row(queries, config.hidden_size, deviation, config.has_output_bias)

    def forward(
        self, x_TH: Tensor, batch_size: int, rotate: RotaryEmbedding, position_ids_BS: Tensor | None, attend: Attend
    ) -> Tensor:
        core = again_if(self.recompute == "core_attn" and self.training, self._core)
        return self.o_proj(core(self.qkv_proj(x_TH), batch_size, rotate, position_ids_BS, attend))

    def _core(
        self, qkv: Tensor, batch_size: int, rotate: RotaryEmbedding, position_ids_BS: Tensor | None, attend: Attend
    ) -> Tensor:
        parts = paddle.split(qkv, [heads * self.head_dim for heads in self.heads], axis=-1)
        q_BSND, k_BSKD, v_BSKD = (
            x.reshape([batch_size, -1, x.shape[-1] // self.head_dim, self.head_dim]) for x in parts
        )
        q_BSND, k_BSKD = rotate(q_BSND, k_BSKD, position_ids_BS)
        out_BSND = attend(self.index, q_BSND, k_BSKD, v_BSKD)
        return out_BSND.reshape([-1, self.heads[0] * self.head_dim])


class MLP(nn.Layer):
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, config: LlamaConfig, shards: TensorParallel) -> None:
        super().__init__()
        inner = config.intermediate_size
        self.gate_up_proj = shards.column(config.hidden_size, 2 * inner, config.initializer_range)
        self.down_proj = shards.row(inner, config.hidden_size, config.initializer_range)

    def forward(self, x_TH: Tensor) -> Tensor:
        gate_TI, up_TI = paddle.split(self.gate_up_proj(x_TH), 2, axis=-1)
        return self.down_proj(fk.swiglu(gate_TI, up_TI))


class DecoderLayer(nn.Layer):
    """x = residual + attention(norm(residual)), then the same with the MLP; the second sum is left to the next norm."""

    def __init__(self, config: LlamaConfig, index: int, shards: TensorParallel, recompute: str | None) -> None:
        super().__init__()
        self.recompute = recompute
        self.input_layernorm = shards.norm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, index, shards, recompute)
        self.post_attention_layernorm = shards.norm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config, shards)

    def forward(
        self,
        x_TH: Tensor,
        residual_TH: Tensor | None,
        batch_size: int,
        rotate: RotaryEmbedding,
        position_ids_BS: Tensor | None,
        attend: Attend,
    ) -> tuple[Tensor, Tensor]:
        if residual_TH is None:
            x_TH, residual_TH = self.input_layernorm(x_TH), x_TH
        else:
            x_TH, residual_TH = self.input_layernorm(x_TH, residual_TH)
        self_attn = again_if(self.recompute == "full_attn" and self.training, self.self_attn)
        x_TH = self_attn(x_TH, batch_size, rotate, position_ids_BS, attend)
        x_TH, residual_TH = self.post_attention_layernorm(x_TH, residual_TH)
        return self.mlp(x_TH), residual_TH


def again_if(is_wanted: bool, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which keeps its inputs alone if that is wanted."""
    return partial(recompute, function) if is_wanted else function


class Llama(nn.Layer):
    """A member of the family with its language model head.

    Args:
        config: sizes and constants.
        dtype: of the activations: "float32", "bfloat16" or "float16". The parameters are float32 in any case.
        recompute: what of each layer is computed again for the gradient instead of being kept; one of GRANULARITIES, or
            None.
        shards: how each layer is divided over ranks; by default one has all.
        pipeline: which layers this stage has, under their names in the whole model; by default all. The first stage has
            the embedding too, the last the norm and the head; a tied embedding is on both.
        sharding: copies that divide the matrices too, in its stage 3; by default, and in other stages, all have them.
    """

    def __init__(
        self,
        config: LlamaConfig,
        dtype: str = "float32",
        recompute: str | None = None,
        shards: TensorParallel = ALONE,
        pipeline: PipelineParallel = ONE_STAGE,
        sharding: Sharding = UNSHARDED,
    ) -> None:
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"Llama: dtype must be {' or '.join(DTYPES)}, got {dtype!r}")
        if recompute not in (None, *GRANULARITIES):
            raise ValueError(f"Llama: recompute must be {' or '.join(GRANULARITIES)} or None, got {recompute!r}")
        self.config = config
        self.table = layout(config)
        self.activation_dtype = dtype
        self.recompute = recompute
        self.shards = shards
        self.pipeline = pipeline
        self.sharding = sharding
        self.chunks = pipeline.layers(config.num_hidden_layers)
        self.stored_dtypes: dict[str, str] | None = None  # of the folder that the parameters come from
        vocab_size, hidden_size, deviation = config.vocab_size, config.hidden_size, config.initializer_range
        if config.tie_word_embeddings and (pipeline.is_first or pipeline.is_last):
            self.lm_head = shards.head(hidden_size, vocab_size, deviation)
            pipeline.share_between_ends(self.lm_head.weight)
        elif pipeline.is_first:
            self.embed_tokens = shards.embedding(vocab_size, hidden_size, deviation, dtype)
        numbers = [number for chunk in self.chunks for number in chunk]
        self.layers = nn.LayerDict({str(each): DecoderLayer(config, each, shards, recompute) for each in numbers})
        if pipeline.is_last:
            self.norm = shards.norm(hidden_size, config.rms_norm_eps)
            if not config.tie_word_embeddings:
                self.lm_head = shards.head(hidden_size, vocab_size, deviation)
        self.rotary = rotary_embedding(config)
        divides = sharding.divides_parameters
        self._divided = DividedLayers(sharding, self.parameters(), self._turns()) if divides else None

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        startend_row_indices: Tensor | None = None,
    ) -> Tensor:
        """Scores of the next token after each token.

        Args:
            input_ids: [B, S] int64.
            position_ids: [B, S] int64; default 0 to S - 1.
            startend_row_indices: [B, 1, S, 1] int32, for packed documents: the row where each token's document ends.

        Returns:
            logits, [B, S, V] float32.
        """
        x_TH = self.decode(input_ids, position_ids, self._attend(startend_row_indices))
        return self.lm_head(x_TH).reshape([*input_ids.shape, -1])

    def loss(
        self,
        input_ids: Tensor,
        labels: Tensor,
        position_ids: Tensor | None = None,
        startend_row_indices: Tensor | None = None,
        received_TH: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(sum of the losses, number of targets) for labels [B, S]: the next token, or -100. No logits are held.

        received_TH: where the last chunk of layers goes on from, if it is not the first.
        """
        x_TH = self.decode(input_ids, position_ids, self._attend(startend_row_indices), received_TH)
        return self.lm_head.loss(x_TH, labels.flatten())

    def decode(
        self,
        input_ids_BS: Tensor,
        position_ids_BS: Tensor | None,
        attend: Attend,
        received_TH: Tensor | None = None,
    ) -> Tensor:
        """What the head reads, [T, H] in the activations' dtype; `attend` is the attention of every layer.

        With sequence parallelism this is this rank's part of the tokens: the head puts them together.
        """
        x_TH, residual_TH = self._run(self.chunks[-1], input_ids_BS, position_ids_BS, attend, received_TH)
        x_TH, _ = self.norm(x_TH, residual_TH)
        return x_TH

    def hand_on(
        self,
        chunk: int,
        input_ids: Tensor,
        position_ids: Tensor | None,
        startend_row_indices: Tensor | None,
        received_TH: Tensor | None,
    ) -> Tensor:
        """The residual stream after a chunk of this stage's layers that is not the model's last.

        The first norm of the next reads this sum, which it would have computed: rounded to the activations' dtype once.
        """
        attend = self._attend(startend_row_indices)
        x_TH, residual_TH = self._run(self.chunks[chunk], input_ids, position_ids, attend, received_TH)
        total_TH = x_TH.cast("float32") + residual_TH.cast("float32")  # Paddle 3.3.1 adds no bfloat16 on the CPU
        return total_TH.cast(self.activation_dtype)

    def _attend(self, startend_row_indices: Tensor | None) -> Attend:
        return attend_causally(startend_row_indices, self.config.window_of)

    def _run(
        self,
        layers: range,
        input_ids_BS: Tensor,
        position_ids_BS: Tensor | None,
        attend: Attend,
        received_TH: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if input_ids_BS.ndim != 2:
            raise ValueError(f"Llama: input_ids must be [batch_size, seq_len], got {list(input_ids_BS.shape)}")
        x_TH, residual_TH = self._embed(input_ids_BS) if received_TH is None else received_TH, None
        for number in layers:
            run = again_if(self.recompute == "full" and self.training, self.layers[str(number)])
            x_TH, residual_TH = run(x_TH, residual_TH, input_ids_BS.shape[0], self.rotary, position_ids_BS, attend)
        return x_TH, residual_TH

    def _embed(self, input_ids_BS: Tensor) -> Tensor:
        input_ids_T = input_ids_BS.flatten()
        if self.config.tie_word_embeddings:
            return self.lm_head.embed(input_ids_T, self.activation_dtype)
        return self.embed_tokens(input_ids_T).cast(self.activation_dtype)

    def handed_on_shape(self, batch_size: int, seq_len: int) -> list[int]:
        """Of this rank's part of what `hand_on` returns."""
        parts = self.shards.size if self.shards.divides_tokens else 1
        return [batch_size * seq_len // parts, self.config.hidden_size]

    def _turns(self) -> list[list[Turn]]:
        """Of every chunk: which layers compute, and in which order."""
        again = self.recompute == "full"  # a part of a layer computes again in the layer's own backward pass
        turns = [[Turn(self.layers[str(number)], again=again) for number in chunk] for chunk in self.chunks]
        if self.pipeline.is_first:
            tied = self.config.tie_word_embeddings
            first = Turn(self.lm_head, ("embed",), True) if tied else Turn(self.embed_tokens, looks_up=True)
            turns[0].insert(0, first)
        if self.pipeline.is_last:
            turns[-1].append(Turn(self.lm_head, ("loss", "forward")))
        return turns

    def divide_layers(self) -> None:
        """Keep of divided matrices what this rank owns; call it before an update."""
        if self._divided is not None:
            self._divided.divide()

    def traced_by(self, trace: Trace) -> None:
        """Have it tell when divided matrices travel, and when a layer waits for them."""
        if self._divided is not None:
            self._divided.trace = trace

    @property
    def saved(self) -> Table:
        """Whose tensors a folder of this model has."""
        return self.table

    def new_files(
        self, folder: Path, dtypes: Mapping[str, str], writers: Writers, max_shard_bytes: int = MAX_SHARD_BYTES
    ) -> Files:
        """For the tensors of `saved`; see `checkpoint.files`."""
        return checkpoint.files(folder, "model", self.saved, dtypes, writers, max_shard_bytes)

    def finish_folder(self, folder: Path, new: Files, dtypes: Mapping[str, str]) -> None:
        """What one of the writers does when all have written."""
        checkpoint.finish(self, folder, new, dtypes)

    @property
    def writers(self) -> Writers:
        """The ranks that share the model."""
        divide = self.sharding.group if self.sharding.divides_parameters else None
        return Writers((self.pipeline.group, divide, self.shards.group))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        dtype: str = "float32",
        recompute: str | None = None,
        shards: TensorParallel = ALONE,
        pipeline: PipelineParallel = ONE_STAGE,
        sharding: Sharding = UNSHARDED,
    ) -> Llama:
        """The model in a Hugging Face folder: `config.json` and safetensors of any floating dtype. Or a GGUF file.

        In a rehearsal the weights are allocated and not read, so `config.json` alone will do.

        Raises:
            FileNotFoundError, ValueError: a file or tensor is missing, truncated or of the wrong shape; it is named.
        """
        config = config_of(folder)
        if fk.is_rehearsal():
            return cls._allocated(config, dtype, recompute, shards, pipeline, sharding)
        weights = checkpoint.Reader(folder, layout(config), shards=shards)
        with paddle.LazyGuard():  # random first values would take 17 ns each
            model = cls(config, dtype, recompute, shards, pipeline, sharding)
        for name, parameter in model.named_parameters():
            if sharding.has(parameter):
                parameter.set_value(weights.read(name))
        model.stored_dtypes = weights.dtypes()
        return model

    @classmethod
    def _allocated(cls, config: LlamaConfig, *how: Any) -> Llama:
        """The model on a device that computes nothing; no value of it is ever on the host."""
        with paddle.LazyGuard():  # else parameters that other ranks own would be there meanwhile
            model = cls(config, *how)
        for parameter in model.parameters():
            if model.sharding.has(parameter):
                parameter.initialize()
        return model

    def save_pretrained(self, folder: str | Path, dtype: str | None = None) -> None:
        """Write the Hugging Face folder that `from_pretrained` reads; an older one stays whole until the end.

        All ranks that share the model call this, and each writes its own part.

        Args:
            folder: where to.
            dtype: of every tensor. By default each has that of the folder which the model comes from, else float32. A
                tensor with values that its dtype does not reach is written in float32.
        """
        given = dtype and dict.fromkeys(elements(self.saved), word(dtype))
        checkpoint.save(self, folder, dtypes=given or self.stored_dtypes)


def rotary_embedding(config: LlamaConfig) -> RotaryEmbedding:
    scaling, positions = config.rope_scaling, config.max_position_embeddings
    amplitude = 1.0 if scaling is None else scaling.amplitude
    frequencies = config.rotary_frequencies()
    return RotaryEmbedding(config.head_dim, positions, frequencies=frequencies, amplitude=amplitude)


def attend_causally(
    startend_row_indices: Tensor | None, window_of: Callable[[int], int | None] = lambda index: None
) -> Attend:
    """Attention over the sequence itself: a token sees those before it, in its own document and its layer's window."""
    ends: dict[int, Tensor] = {}  # by window: layers share theirs

    def attend(index: int, q_BSND: Tensor, k_BSKD: Tensor, v_BSKD: Tensor) -> Tensor:
        rows, window = startend_row_indices, window_of(index)
        if window is not None and window < k_BSKD.shape[1]:
            if window not in ends:
                ends[window] = within_window(startend_row_indices, window, k_BSKD.shape[:2])
            rows = ends[window]
        return fk.flash_attention(q_BSND, k_BSKD, v_BSKD, causal=True, startend_row_indices=rows)

    return attend


def within_window(startend_row_indices: Tensor | None, window: int, shape: list[int]) -> Tensor:
    """The row from which each token is out of sight, [B, 1, S, 1] int32: its document's end, or a window further on."""
    batch_size, length = shape
    rows = (paddle.arange(length, dtype="int32") + window).reshape([1, 1, length, 1]).expand([batch_size, 1, length, 1])
    return rows if startend_row_indices is None else paddle.minimum(rows, startend_row_indices)
