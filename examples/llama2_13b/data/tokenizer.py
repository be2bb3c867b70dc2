"""Text to token ids and back: `tokenizer.json` of a Hugging Face folder, or one trained on the example's data."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Iterator
from itertools import accumulate
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from examples.llama2_13b.data.begin_token import begin_with
from examples.llama2_13b.data.tokenizer_folder import TokenizerFolder
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.io import atomic

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>")  # ids 0, 1 and 2, as the configurations say
Part = tuple[str, bool]  # a text, and whether the control tokens that it names are meant


class Tokenizer:
    """A tokenizer with the ids of its end and padding tokens, and of what it begins texts with.

    What a user wrote is text: `</s>` in it is encoded as characters. Lengths are the caller's to decide: truncation and
    padding that tokenizer.json holds are switched off.

    Args:
        backend: of the library `tokenizers`; taken over.
        config: tells the ids.
        files: file name -> content, to write again with the model.
        control: names of control tokens beside those that the backend calls special.
        ends: tokens at which generation stops, beside the configuration's.
        begin: the begin token, if texts are to begin with it.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        config: LlamaConfig,
        files: dict[str, bytes],
        control: Iterable[str] = (),
        ends: Iterable[int] = (),
        begin: Iterable[int] = (),
    ) -> None:
        self._decoder = tokenizers.Tokenizer.from_str(backend.to_str())
        self._encoder, self.files = backend, files
        self.begin = tuple(begin)
        self.eos_token_id, self.pad_token_id = config.eos_token_id, config.pad_token_id
        self.end_token_ids = {*config.eos_token_ids, *ends}
        self.vocab_size = backend.get_vocab_size()
        backend.no_truncation()
        backend.no_padding()
        if isinstance(backend.model, models.BPE):
            backend.model.dropout = None  # it would make another encoding at each call
        self._name_control_tokens(control)

    def _name_control_tokens(self, control: Iterable[str]) -> None:
        """Give each control token a second name that no user can write; under its own it is text from here on."""
        added = self._encoder.get_added_tokens_decoder()
        named = {name: self._encoder.token_to_id(name) for name in control}
        self._hidden = {number for number in named.values() if number is not None}
        ids = {name: number for name, number in named.items() if number is not None}
        ids |= {token.content: number for number, token in added.items() if token.special or _is_mark(token.content)}
        self._control, self._control_ids = {number: name for name, number in ids.items()}, ids
        secret = secrets.token_hex(8)
        self._second_names = {name: f"<{secret}:{number}>" for name, number in ids.items()}
        for name, number in ids.items():
            flags = {side: getattr(added.get(number), side, False) for side in ("lstrip", "rstrip")}
            self._encoder.add_tokens([AddedToken(self._second_names[name], normalized=False, **flags)])
        self._meant = {self._encoder.token_to_id(second): name for name, second in self._second_names.items()}
        longest_first = sorted(ids, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._encoder.encode_special_tokens = True

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer of a model folder.

        Raises:
            FileNotFoundError: no tokenizer.json.
            ValueError: it cannot be read, has tokens without a row in the model, or begin and end are other tokens
                than in config.json.
        """
        described = TokenizerFolder(folder)
        backend = described.backend()
        described.require_rows(backend)
        config = described.require_ids(config_of(described.folder), backend)
        ends, begin = described.ends(), described.begin(backend)
        return cls(backend, config, described.files, described.control_tokens(), ends, begin)

    @classmethod
    def train(cls, texts: Iterable[str], config: LlamaConfig) -> Tokenizer:
        """Byte-level BPE of at most vocab_size tokens: every text has an encoding, in any script, and a begin token.

        Raises:
            ValueError: the vocabulary has no room for every byte, or the special tokens have other ids.
        """
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        if config.vocab_size < len(SPECIAL_TOKENS) + len(alphabet):
            rule = f"at least {len(SPECIAL_TOKENS) + len(alphabet)}, for every byte and {', '.join(SPECIAL_TOKENS)}"
            raise ValueError(f"create: vocab_size must be {rule}, got {config.vocab_size}")
        ids = (config.pad_token_id or 0, config.bos_token_id, config.eos_token_id)
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
        begin_with(backend, bos)
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
        return cls(backend, config, files, begin=[ids[1]])

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Token ids, without begin or end. `special`: read `</s>` and its like in the text as the tokens they name."""
        return self.encode_parts([(text, special)])

    def encode_parts(self, parts: Iterable[Part]) -> list[int]:
        """Token ids of the parts as one text: a token may reach over the joint of two."""
        return self._ids("".join(self._with_second_names(text) if special else text for text, special in parts))

    def encode_answers(self, parts: Iterable[tuple[Part, bool]]) -> list[tuple[int, bool]]:
        """The same ids, each with whether it holds a character of a part that is marked."""
        marked = list(parts)
        texts = [self._with_second_names(text) if special else text for (text, special), _ in marked]
        flags = [is_marked for text, (_, is_marked) in zip(texts, marked, strict=True) for _ in text]
        before = [0, *accumulate(flags)]  # marked characters
        return [
            (token, before[max(stop, start + 1)] > before[start])
            for token, start, stop in self._located("".join(texts))
        ]

    @property
    def control_names(self) -> list[str]:
        """What no user can write: in a user's text it is characters."""
        return list(self._control_ids)

    def _with_second_names(self, text: str) -> str:
        return self._names.sub(lambda found: self._second_names[found[0]], text)

    def _ids(self, text: str) -> list[int]:
        encoding = self._encoder.encode(text, add_special_tokens=False)
        if self._meant.keys().isdisjoint(encoding.ids) and self._control.keys().isdisjoint(encoding.ids):
            return list(encoding.ids)
        return [token for token, _, _ in self._located(text)]

    def _located(self, text: str) -> Iterator[tuple[int, int, int]]:
        """Every token, with the first of its characters and the one after its last."""
        encoding = self._encoder.encode(text, add_special_tokens=False)
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            written, name = text[start:stop], self._control.get(token, "")
            meant = self._meant.get(token)
            if meant is not None and self._second_names[meant] in written:
                yield self._control_ids[meant], start, stop
            elif len(name) > 1 and name in written:  # some vocabularies find it in plain text
                yield from ((piece, start, stop) for piece in self._in_pieces(written, name))
            else:
                yield token, start, stop

    def _in_pieces(self, written: str, name: str) -> list[int]:
        """A text that holds a control token's name: its characters, or two halves where those are no tokens.

        A tokenizer that writes a space before every text would write one before the second half.
        """
        characters = [self._encoder.token_to_id(character) for character in written]
        known = [token for token in characters if token is not None]
        if written == name and len(known) == len(name) and self._control.keys().isdisjoint(known):
            return known
        half = written.index(name) + 1
        return self._ids(written[:half]) + self._ids(written[half:])

    def starts(self, text: str) -> list[int]:
        """The characters of a user's text at which a token starts, ascending."""
        return sorted({start for start, _ in self._encoder.encode(text, add_special_tokens=False).offsets})

    def decode(self, ids: Iterable[int]) -> str:
        """The text, without control tokens."""
        shown = [token for token in ids if token not in self._hidden]
        return str(self._decoder.decode(shown, skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        for name, content in self.files.items():
            atomic.write_file(folder / name, content)


def _is_mark(added_token: str) -> bool:
    """`[INST]`, `<|im_start|>`: a mark of a template, also where tokenizer.json does not call it special."""
    return len(added_token) > 2 and added_token[0] + added_token[-1] in ("<>", "[]")
