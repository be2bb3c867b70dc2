"""The tokenizer and the chat template in a GGUF file, as the files of a Hugging Face folder.

Source: llama.cpp's src/llama-vocab.cpp, for how texts are cut before the merges, by `tokenizer.ggml.pre`.
"""

from __future__ import annotations

import json
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from examples.llama2_13b.data.begin_token import begin_with
from examples.llama2_13b.data.sentencepiece_model import CONTROL, USER_DEFINED, Pieces
from examples.llama2_13b.folders.gguf_config import token_id
from examples.llama2_13b.folders.gguf_file import GGUFFile

KEY = "tokenizer.ggml."
ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# A word with the sign before it, some digits, signs, ends of lines, and other space; as Llama 3 and Qwen2 cut it.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3, QWEN2 = _WORDS.format(digits="{1,3}"), _WORDS.format(digits="")
# Regex, or None for GPT-2's; whether digits are cut from each other first; whether a word that is a token needs no
# merges.
CUTS: dict[str, tuple[str | None, bool, bool]] = {
    "gpt-2": (None, False, False),
    "smollm": (None, True, False),
    "llama-bpe": (LLAMA3, False, True),
    "qwen2": (QWEN2, False, False),
    "deepseek-r1-qwen": (QWEN2, False, False),
}


def files(file: GGUFFile) -> dict[str, bytes]:
    """`tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja`, as far as the file has them.

    Raises:
        ValueError: the file's tokenizer is not covered; what it says is named.
    """
    names = _required(file, "tokens")
    types = file.get(f"{KEY}token_type") or [1] * len(names)
    backend = _backend(file, names, types)
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for role, theirs in ROLES.items():
        number = token_id(file, theirs)
        if number is not None and 0 <= number < len(names):
            about[role] = names[number]
    if "bos_token" in about and _begins(file):
        begin_with(backend, about["bos_token"])
    written = {
        "tokenizer.json": backend.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode(),
    }
    if template := file.get("tokenizer.chat_template"):
        written["chat_template.jinja"] = template.encode()
    return written


def _begins(file: GGUFFile) -> bool:
    """Whether texts begin with the begin token. Files that do not say so mean what llama.cpp takes them for."""
    begins = file.get(f"{KEY}model") == "llama" or file.get(f"{KEY}pre") == "llama-bpe"
    return bool(file.get(f"{KEY}add_bos_token", begins))


def _required(file: GGUFFile, name: str) -> Any:
    value = file.get(f"{KEY}{name}")
    if not value:
        raise ValueError(f"{file.index}: {KEY}{name} must be there, got none")
    return value


def _backend(file: GGUFFile, names: list[str], types: list[int]) -> tokenizers.Tokenizer:
    kind = file.get(f"{KEY}model")
    if kind == "llama":
        adds_space = file.get(f"{KEY}add_space_prefix", True)
        return Pieces(names, _required(file, "scores"), types, adds_space).backend()
    if kind == "gpt2":
        return _byte_level(file, names, types)
    raise ValueError(f"{file.index}: {KEY}model must be gpt2 or llama, got {kind!r}")


def _byte_level(file: GGUFFile, names: list[str], types: list[int]) -> tokenizers.Tokenizer:
    cut = file.get(f"{KEY}pre")
    if cut not in CUTS:
        raise ValueError(f"{file.index}: {KEY}pre must be {', '.join(CUTS)}, got {cut!r}")
    regex, cuts_digits, ignores_merges = CUTS[cut]
    merges = [tuple(merge.split(" ", 1)) for merge in _required(file, "merges")]
    vocab = {name: number for number, name in enumerate(names)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, ignore_merges=ignores_merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cuts_digits else []
    steps += [pre_tokenizers.Split(Regex(regex), "isolated")] if regex else []
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*steps, byte_level])
    backend.decoder = decoders.ByteLevel()
    added = list(zip(names, types, strict=True))
    backend.add_special_tokens([AddedToken(name, normalized=False) for name, kind in added if kind == CONTROL])
    backend.add_tokens([AddedToken(name, normalized=False) for name, kind in added if kind == USER_DEFINED])
    return backend
