"""What a model folder says of its tokenizer beside tokenizer.json: begin, end and control tokens, chat templates."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from examples.llama2_13b.data import gguf_tokenizer
from examples.llama2_13b.data.begin_token import begin_with, written_by
from examples.llama2_13b.data.sentencepiece_model import read_model
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.gguf_file import gguf_of, opened
from examples.llama2_13b.folders.model_folder import fields_of
from examples.llama2_13b.io.text import ENCODING, parse_object

NAMING = ("tokenizer_config.json", "special_tokens_map.json")  # the first wins, as in transformers
GENERATION = "generation_config.json"
HUGGING_FACE_TEMPLATE = "chat_template.jinja"  # older folders have it as a field of tokenizer_config.json
SENTENCEPIECE = "tokenizer.model"
# Carried along when a model is saved, so that other programs find what they found in the original folder.
FILES = ("tokenizer.json", *NAMING, SENTENCEPIECE, GENERATION, HUGGING_FACE_TEMPLATE)
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
TEMPLATE_ROLES = (*ROLES, "sep_token", "cls_token", "mask_token")  # transformers gives these to a chat template


class TokenizerFolder:
    """The files of a folder, read once; of a GGUF file, what they would say.

    A `tokenizer.model` without `tokenizer.json` is turned into the latter.

    Raises:
        FileNotFoundError: no config.json.
        ValueError: a file is not JSON, or no tokenizer that is covered; it is named.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._config = fields_of(self.folder)
        file = gguf_of(self.folder)
        self.files = gguf_tokenizer.files(opened(file)) if file else self._read_files()
        described = ("tokenizer.json", *NAMING)
        self._fields = {
            name: parse_object(self.files[name], self.folder / name) if name in self.files else {} for name in described
        }

    def _read_files(self) -> dict[str, bytes]:
        files = {name: (self.folder / name).read_bytes() for name in FILES if (self.folder / name).is_file()}
        if SENTENCEPIECE in files and "tokenizer.json" not in files:
            path = self.folder / NAMING[0]
            about = parse_object(files.get(path.name, b"{}"), path)
            legacy = about.get("legacy", False) is True
            backend = read_model(files[SENTENCEPIECE], self.folder / SENTENCEPIECE, legacy).backend()
            begin = _content(about.get("bos_token")) or "<s>"
            if about.get("add_bos_token") is not False and backend.token_to_id(begin) is not None:
                begin_with(backend, begin)
            files["tokenizer.json"] = backend.to_str(pretty=True).encode()
        return files

    def backend(self) -> tokenizers.Tokenizer:
        """The tokenizer of the library.

        Raises:
            FileNotFoundError: no tokenizer.json.
            ValueError: it cannot be read.
        """
        path = self.folder / "tokenizer.json"
        if path.name not in self.files:
            advice = "transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(folder) writes it"
            raise FileNotFoundError(f"{path}: not found, nor {SENTENCEPIECE}. {advice}")
        try:
            return tokenizers.Tokenizer.from_str(self.files[path.name].decode(ENCODING))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{path}: not a tokenizer ({error})") from None

    def control_tokens(self) -> Iterator[str]:
        """Tokens that have a role, whether or not tokenizer.json calls them special."""
        for file in NAMING:
            fields = self._fields[file]
            more = [fields.get(name) or [] for name in ("additional_special_tokens", "extra_special_tokens")]
            listed = [token for each in more for token in (each.values() if isinstance(each, dict) else each)]
            added = fields.get("added_tokens_decoder") or {}
            special = [token for token in added.values() if token.get("special")]
            for token in (*(fields.get(role) for role in ROLES), *listed, *special):
                if content := _content(token):
                    yield content

    def token_of(self, role: str) -> tuple[str, str] | None:
        """(the token that begins or ends a text, what says so), or None if nothing does."""
        for file in NAMING:
            if content := _content(self._fields[file].get(role)):
                return content, f"{role} of {file}"
        written = self._written()
        if role in written:
            return written[role], "the post_processor of tokenizer.json"
        name = {"bos_token": "<s>", "eos_token": "</s>"}[role]
        added = self._fields["tokenizer.json"].get("added_tokens") or []
        return (name, "its name in tokenizer.json") if any(token["content"] == name for token in added) else None

    def _written(self) -> dict[str, str]:
        return written_by(self._fields["tokenizer.json"].get("post_processor"))

    def begin(self, backend: tokenizers.Tokenizer) -> tuple[int, ...]:
        """What a text begins with: the begin token, or nothing.

        Raises:
            ValueError: the post-processor writes what is no token.
        """
        token = self._written().get("bos_token")
        number = None if token is None else backend.token_to_id(token)
        if token is not None and number is None:
            rule = f"a token of its vocabulary, got {token!r}"
            raise ValueError(f"{self.folder / 'tokenizer.json'}: what post_processor writes first must be {rule}")
        return () if number is None else (number,)

    def require_ids(self, config: LlamaConfig, backend: tokenizers.Tokenizer) -> LlamaConfig:
        """Begin and end must be the same tokens in config.json and in the tokenizer.

        A begin token that no text gets need not stand in config.json.

        Returns:
            The configuration, of whose ends the tokenizer's comes first.

        Raises:
            ValueError: they differ; files and ids are named.
        """
        wrong = []
        for role in ("bos_token", "eos_token"):
            token, source = self.token_of(role) or ("", "")
            has_begin = config.bos_token_id is not None or "bos_token" in self._written()
            if not token or (role == "bos_token" and not has_begin):
                continue
            right = backend.token_to_id(token)
            named = config.eos_token_ids if role == "eos_token" else (config.bos_token_id,)
            if right is None:
                raise ValueError(f"{self.folder}: {source} must be a token of tokenizer.json, got {token!r}")
            if right not in named:
                found = ", ".join(map(json.dumps, named))
                wrong.append(f"{role}_id must be {right}, the id of {token!r} ({source}), got {found}")
            elif role == "eos_token":
                config = config.ending_with(right)
        if wrong:
            advice = "Correct config.json, or put the tokenizer there that belongs to the model"
            raise ValueError(f"{self.folder / 'config.json'}: {'; '.join(wrong)}. {advice}")
        return config

    def require_rows(self, backend: tokenizers.Tokenizer) -> None:
        """Every token needs a row of the embedding. More rows than tokens are fine.

        This comes before other checks of config.json: a pad_token_id beyond vocab_size has its cure here.

        Raises:
            ValueError: a token has none, or another id than tokenizer.json says; it is named.
        """
        path, size = self.folder / "tokenizer.json", self._config.get("vocab_size")
        added = {token["content"]: token["id"] for token in self._fields["tokenizer.json"].get("added_tokens") or []}
        token, highest = max((backend.get_vocab() | added).items(), key=lambda item: item[1], default=("", -1))
        if isinstance(size, int) and highest >= size:
            raise ValueError(
                f"{path}: must be of at most {size} tokens, with ids below vocab_size {size} of config.json, got "
                f"{token!r} of id {highest}. Take the token out of tokenizer.json, or give the model its row: "
                f"transformers' model.resize_token_embeddings({highest + 1}) and save_pretrained"
            )
        for token, number in added.items():
            if (found := backend.token_to_id(token)) != number:
                rule = f"id {found}, the next free one" if found is not None else "an id"
                raise ValueError(f"{path}: the added token {token!r} must have {rule}, got {number}; ids leave a gap")

    def require_end(self, eos_token_id: int) -> None:
        """The end that training teaches must be one at which generation stops.

        Raises:
            ValueError: generation_config.json names other ends alone.
        """
        if GENERATION not in self.files:
            return
        path, ends = self.folder / GENERATION, self.ends()
        if ends and eos_token_id not in ends:
            rule = f"{eos_token_id}, as in config.json, or a list with it"
            raise ValueError(f"{path}: eos_token_id must be {rule}, got {json.dumps(ends)}. Answers would never end")

    def named_tokens(self) -> dict[str, str]:
        """Tokens by their roles, which a chat template may write."""
        said = {role: [_content(self._fields[file].get(role)) for file in NAMING] for role in TEMPLATE_ROLES}
        return {role: next(filter(None, tokens)) for role, tokens in said.items() if any(tokens)}

    def ends(self) -> list[int]:
        """The tokens at which generation stops by generation_config.json; none if it does not say."""
        fields = parse_object(self.files.get(GENERATION, b"{}"), self.folder / GENERATION)
        named = fields.get("eos_token_id")
        return named if isinstance(named, list) else [] if named is None else [named]

    def chat_template(self) -> tuple[str, str] | None:
        """(the chat template of Hugging Face, where it stands): the file wins, as in transformers.

        Raises:
            ValueError: it is not a text, or there are several and none is called default.
        """
        if HUGGING_FACE_TEMPLATE in self.files:
            path = self.folder / HUGGING_FACE_TEMPLATE
            try:
                return self.files[HUGGING_FACE_TEMPLATE].decode(ENCODING), str(path)
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: must be text in UTF-8: {error}") from None
        template = self._fields[NAMING[0]].get("chat_template")
        where = f"{self.folder / NAMING[0]}: chat_template"
        if isinstance(template, list):
            template = _default(template, where)
        if template is not None and not isinstance(template, str):
            raise ValueError(f"{where} must be a text or a list of named texts, got {json.dumps(template)[:60]}")
        return (template, where) if template else None


def without_chat_template(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files for a model whose training did not follow the template in them."""
    kept = {name: content for name, content in files.items() if name != HUGGING_FACE_TEMPLATE}
    if NAMING[0] in kept and "chat_template" in (fields := parse_object(kept[NAMING[0]], NAMING[0])):
        del fields["chat_template"]
        kept[NAMING[0]] = (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()
    return kept


def _default(named: list[Any], where: str) -> Any:
    try:
        templates = {one["name"]: one["template"] for one in named}
    except (TypeError, KeyError):
        raise ValueError(f"{where} must list objects with name and template, got {json.dumps(named)[:60]}") from None
    if "default" not in templates:
        rule = f"one called default, got {', '.join(templates)}. Write the one you want to {HUGGING_FACE_TEMPLATE}"
        raise ValueError(f"{where} must have {rule}")
    return templates["default"]


def _content(token: Any) -> str | None:
    """Tokens are written as texts, or as objects with their flags."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
