"""A GGUF file of a Llama with random weights, in the blocks of Q8_0 or Q4_0, written tensor by tensor.

Blocks are drawn as they stand in the file: uniform codes, and scales that give each matrix the spread 1 / sqrt(inputs),
which keeps activations near 1. A scale has either sign, for the codes' mean is below 0: with one sign that mean would
outweigh the rest, and every answer be one token. A file of any size needs the memory of its largest tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.folders.config import LlamaConfig

BLOCK = 32  # weights of a scale
CODE_BYTES = {"Q8_0": 32, "Q4_0": 16}  # of a block, after its float16 scale
CODES = {"Q8_0": 256, "Q4_0": 16}  # uniform from -CODES / 2 on
SPECIAL = ("<unk>", "<s>", "</s>")
CONTROL, NORMAL = 3, 1  # kinds of a token in a GGUF file


def write(path: Path, config: LlamaConfig, kind: str, seed: int = 0) -> None:
    """The file, whole or not at all.

    Args:
        config: sizes; vocab_size is at least 260, a token for each byte and some beside.
        kind: "Q8_0" or "Q4_0", of every matrix.

    Raises:
        ValueError: a size does not fit blocks, or the vocabulary is too small.
    """
    import gguf

    _require(config)
    temporary = path.with_name(f".{path.name}.saving")
    writer = gguf.GGUFWriter(temporary, "llama")
    try:
        _describe(writer, config, kind)
        tensor_type = gguf.GGMLQuantizationType[kind]
        for name, shape in shapes(config):
            if len(shape) == 1:
                writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * shape[0])
            else:
                stored = (shape[0], _row_bytes(shape[1], kind))
                writer.add_tensor_info(name, stored, np.dtype(np.uint8), math.prod(stored), tensor_type)
        for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
            step()
        draws = np.random.default_rng(seed)
        for _, shape in shapes(config):
            writer.write_tensor_data(np.ones(shape, np.float32) if len(shape) == 1 else blocks(draws, shape, kind))
        writer.close()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shapes(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each tensor by llama.cpp's name, [out_features, in_features]."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    queries, keys = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    yield "token_embd.weight", (config.vocab_size, hidden)
    for layer in range(config.num_hidden_layers):
        for name, shape in (
            ("attn_norm", (hidden,)), ("attn_q", (queries, hidden)), ("attn_k", (keys, hidden)),
            ("attn_v", (keys, hidden)), ("attn_output", (hidden, queries)), ("ffn_norm", (hidden,)),
            ("ffn_gate", (mlp, hidden)), ("ffn_up", (mlp, hidden)), ("ffn_down", (hidden, mlp)),
        ):  # fmt: skip
            yield f"blk.{layer}.{name}.weight", shape
    yield "output_norm.weight", (hidden,)
    yield "output.weight", (config.vocab_size, hidden)


def blocks(draws: np.random.Generator, shape: tuple[int, ...], kind: str) -> NDArray[np.uint8]:
    """[out_features, bytes of a row]: for each 32 weights a float16 scale and their codes, of any bits."""
    rows, columns = shape
    count, code_bytes = columns // BLOCK, CODE_BYTES[kind]
    spread = math.sqrt((CODES[kind] ** 2 - 1) / 12)  # of uniform integers
    made = np.empty((rows, count, 2 + code_bytes), np.uint8)
    scales = draws.uniform(0.5, 1.5, (rows, count)) * draws.choice((-1, 1), (rows, count))
    scales /= spread * math.sqrt(columns)
    made[..., :2] = scales.astype(np.float16)[..., None].view(np.uint8)
    made[..., 2:] = np.frombuffer(draws.bytes(rows * count * code_bytes), np.uint8).reshape(rows, count, code_bytes)
    return made.reshape(rows, -1)


def _row_bytes(columns: int, kind: str) -> int:
    return columns // BLOCK * (2 + CODE_BYTES[kind])


def _require(config: LlamaConfig) -> None:
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % BLOCK:
            raise ValueError(f"random_gguf: {name} must be a multiple of {BLOCK}, got {getattr(config, name)}")
    least = 256 + len(SPECIAL) + 1
    if config.vocab_size < least:
        rule = f"at least {least}, a token for each byte"
        raise ValueError(f"random_gguf: vocab_size must be {rule}, got {config.vocab_size}")


def _describe(writer: Any, config: LlamaConfig, kind: str) -> None:
    import gguf

    writer.add_name(f"random {config.hidden_size} x {config.num_hidden_layers}")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocab_size)
    _add_vocabulary(writer, config.vocab_size)


def _add_vocabulary(writer: Any, vocab_size: int) -> None:
    """Byte-level: a token for each byte, one merge because readers want some, and names that no text has."""
    letters = list(byte_letters())
    tokens = [*SPECIAL, *letters, "Ġt"]
    tokens += [f"<unused_{number}>" for number in range(vocab_size - len(tokens))]
    is_text = [token in letters or token == "Ġt" for token in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([NORMAL if each else CONTROL for each in is_text])
    writer.add_token_merges(["Ġ t"])
    for role, token in (("unk", 0), ("bos", 1), ("eos", 2)):
        getattr(writer, f"add_{role}_token_id")(token)


def byte_letters() -> Iterator[str]:
    """The letter that stands for each byte in a byte-level vocabulary: itself if it can be seen, else from 256 on.

    Source: Radford et al. 2019, the encoder of GPT-2.
    """
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = 0
    for byte in range(256):
        if byte in seen:
            yield chr(byte)
        else:
            yield chr(256 + hidden)
            hidden += 1
