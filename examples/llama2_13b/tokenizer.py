"""Text to token ids and back: `tokenizer.json` of a Hugging Face folder, or one trained on the example's data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from examples.llama2_13b import atomic
from examples.llama2_13b.config import LlamaConfig

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")  # ids 0, 1 and 2, as the configurations say
# Carried along when a model is saved, so that other programs find what they found in the original folder.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "generation_config.json",
    "chat_template.jinja",
)


class Tokenizer:
    """A tokenizer with the ids of its begin, end and padding tokens.

    Args:
        backend: of the library `tokenizers`.
        config: tells the ids.
        files: file name -> content, to write again with the model.
    """

    def __init__(self, backend: tokenizers.Tokenizer, config: LlamaConfig, files: dict[str, bytes]) -> None:
        self._backend, self.files = backend, files
        self.bos_token_id, self.eos_token_id = config.bos_token_id, config.eos_token_id
        self.pad_token_id = config.pad_token_id
        self.vocab_size = backend.get_vocab_size()

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder.

        Raises:
            FileNotFoundError: no tokenizer.json.
            ValueError: it cannot be read, or knows more tokens than the model.
        """
        folder = Path(folder)
        config = LlamaConfig.from_json(folder / "config.json")
        path = folder / "tokenizer.json"
        if not path.exists():
            advice = "transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes it"
            raise FileNotFoundError(f"{path}: not found; tokenizer.model alone is not read. {advice}")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokenizer ({error})") from None
        if backend.get_vocab_size() > config.vocab_size:
            rule = f"of at most {config.vocab_size} tokens (vocab_size of config.json)"
            raise ValueError(f"{path}: must be {rule}, got {backend.get_vocab_size()}")
        return cls(backend, config, {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()})

    @classmethod
    def train(cls, texts: Iterable[str], config: LlamaConfig) -> Tokenizer:
        """Byte-level BPE of at most vocab_size tokens: every text has an encoding, in any script.

        Raises:
            ValueError: the vocabulary has no room for every byte, or the special tokens have other ids.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if config.vocab_size < len(SPECIAL_TOKENS) + len(alphabet):
            rule = f"at least {len(SPECIAL_TOKENS) + len(alphabet)}, for every byte and {', '.join(SPECIAL_TOKENS)}"
            raise ValueError(f"create: vocab_size must be {rule}, got {config.vocab_size}")
        ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
        if ids != (0, 1, 2):
            raise ValueError(f"create: pad, bos and eos_token_id must be 0, 1 and 2, got {ids}")
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=alphabet,
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        pad, bos, eos = SPECIAL_TOKENS
        about = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos,
            "eos_token": eos,
            "pad_token": pad,
            "clean_up_tokenization_spaces": False,
        }
        files = {
            "tokenizer.json": backend.to_str(pretty=True).encode(),
            "tokenizer_config.json": (json.dumps(about, indent=2) + "\n").encode(),
        }
        return cls(backend, config, files)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids, without begin or end. `special`: read `</s>` and its like in the text as the tokens they name."""
        self._backend.encode_special_tokens = not special
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Iterable[int]) -> str:
        return str(self._backend.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        for name, content in self.files.items():
            atomic.write_file(folder / name, content)
