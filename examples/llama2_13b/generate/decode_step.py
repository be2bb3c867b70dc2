"""The exported program: one step of decoding over a paged key-value cache, rows in prefill beside rows in decode.

Shapes in names:
    T  this step's tokens, row after row without padding      R  rows of the batch
    H  hidden size      N  query heads      K  key-value heads      D  elements of a head      V  vocabulary
    C  blocks of the cache      P  positions in a block
"""

from __future__ import annotations

from paddle import Tensor, gather, nn
from paddle.static import InputSpec

import fusionkit as fk
from examples.llama2_13b.model import Llama
from fusionkit.nn import LanguageModelHead, Linear

CACHE_DTYPES = ("int8",)  # besides the activations'


class DecodeStep(nn.Layer):
    """The model's layers, with attention through the cache and scores of each row's last token only.

    Args:
        model: whose layers they are.
        cache_dtype: of keys and values, one of CACHE_DTYPES; the activations' if None.
    """

    def __init__(self, model: Llama, cache_dtype: str | None = None) -> None:
        super().__init__()
        self.model, self.cache_dtype = model, cache_dtype

    def forward(
        self,
        input_ids_T: Tensor,
        position_ids_T: Tensor,
        last_tokens_R: Tensor,
        seq_lens_encoder_R: Tensor,
        seq_lens_decoder_R: Tensor,
        seq_lens_this_time_R: Tensor,
        block_tables: Tensor,
        key_caches_CKPD: list[Tensor],
        value_caches_CKPD: list[Tensor],
        key_scales_CKP: list[Tensor] | None = None,
        value_scales_CKP: list[Tensor] | None = None,
    ) -> Tensor:
        """Scores of the next token of each row.

        Args:
            input_ids_T: int64.
            position_ids_T: int64, each token's place in its row.
            last_tokens_R: int32, where in input_ids each row's last token is.
            seq_lens_encoder_R, seq_lens_decoder_R, seq_lens_this_time_R, block_tables: as `fk.paged_attention`'s.
            key_caches_CKPD, value_caches_CKPD: of each layer, in the cache's dtype; written in place.
            key_scales_CKP, value_scales_CKP: float32, with caches of int8; written in place.

        Returns:
            logits, [R, V] float32.
        """

        def attend(index: int, q_1TND: Tensor, k_1TKD: Tensor, v_1TKD: Tensor) -> Tensor:
            out_TND = fk.paged_attention(
                q_1TND.squeeze(0),
                k_1TKD.squeeze(0),
                v_1TKD.squeeze(0),
                key_caches_CKPD[index],
                value_caches_CKPD[index],
                block_tables=block_tables,
                seq_lens_encoder=seq_lens_encoder_R,
                seq_lens_decoder=seq_lens_decoder_R,
                seq_lens_this_time=seq_lens_this_time_R,
                window=self.model.config.window_of(index) or 0,
                key_scales=key_scales_CKP and key_scales_CKP[index],
                value_scales=value_scales_CKP and value_scales_CKP[index],
            )
            return out_TND.reshape(q_1TND.shape)

        x_TH = self.model.decode(input_ids_T.unsqueeze(0), position_ids_T.unsqueeze(0), attend)
        # Through float32, which is exact: Paddle 3.3 gathers no float16 on the host.
        last_RH = gather(x_TH.cast("float32"), last_tokens_R).cast(x_TH.dtype)
        return self.model.lm_head(last_RH)

    def input_spec(self) -> list[InputSpec | list[InputSpec]]:
        """The arguments of `forward`, any number of tokens, rows and blocks."""
        config, dtype = self.model.config, self.cache_dtype or self.model.activation_dtype
        scales = [-1, config.num_key_value_heads, -1]
        cache = [*scales, config.head_dim]
        layers = range(config.num_hidden_layers)
        specs = [
            InputSpec([-1], "int64", "input_ids"),
            InputSpec([-1], "int64", "position_ids"),
            InputSpec([-1], "int32", "last_tokens"),
            InputSpec([-1], "int32", "seq_lens_encoder"),
            InputSpec([-1], "int32", "seq_lens_decoder"),
            InputSpec([-1], "int32", "seq_lens_this_time"),
            InputSpec([-1, -1], "int32", "block_tables"),
            [InputSpec(cache, dtype, f"key_cache_{layer}") for layer in layers],
            [InputSpec(cache, dtype, f"value_cache_{layer}") for layer in layers],
        ]
        if self.cache_dtype is not None:
            for kind in ("key", "value"):
                specs.append([InputSpec(scales, "float32", f"{kind}_scales_{layer}") for layer in layers])
        return specs


def narrow_matrices(model: Llama) -> None:
    """Every op would round the float32 matrices to the activations' dtype at each call: do it once. Norms stay."""
    for layer in model.sublayers():
        if isinstance(layer, nn.Embedding | Linear | LanguageModelHead):
            layer.to(dtype=model.activation_dtype)
