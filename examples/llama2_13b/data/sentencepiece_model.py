"""sentencepiece's BPE as a tokenizer of the library `tokenizers`: from `tokenizer.model`, or from a GGUF file's pieces.

sentencepiece joins the two neighbours whose union is the piece with the highest score. `tokenizers` joins them by a
list of pairs. So each pair whose union is a piece gets a place in that list, in the order of the pieces' scores.

Source: sentencepiece 0.2.3, sentencepiece_model.proto; transformers 5.23.0, LlamaTokenizer, for the order of pairs
with one union and for what a space becomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces, in both formats
SPACE = "\u2581"


@dataclass(frozen=True)
class Pieces:
    """A vocabulary, the piece of an id at its place.

    Args:
        names, scores, types: of each piece.
        adds_space: before a text; as in transformers 5 not where it begins with one, where sentencepiece adds a second.
        legacy: a space is added after each control token too, as transformers did before 4.31.
    """

    names: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    adds_space: bool = True
    legacy: bool = False

    def backend(self) -> tokenizers.Tokenizer:
        vocab = {name: number for number, name in enumerate(self.names)}
        unknown = next((name for name, kind in zip(self.names, self.types, strict=True) if kind == UNKNOWN), None)
        has_bytes = BYTE in self.types
        model = models.BPE(vocab, self._merges(vocab), unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
        backend = tokenizers.Tokenizer(model)
        scheme = ("always" if self.legacy else "first") if self.adds_space else "never"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
        backend.decoder = self._decoder()
        added = [(name, kind) for name, kind in zip(self.names, self.types, strict=True)]
        special = [AddedToken(name, normalized=False) for name, kind in added if kind in (UNKNOWN, CONTROL)]
        backend.add_special_tokens(special)
        backend.add_tokens([AddedToken(name, normalized=False) for name, kind in added if kind == USER_DEFINED])
        return backend

    def _merges(self, vocab: dict[str, int]) -> list[tuple[str, str]]:
        """Higher scores first. Of pairs with one union, or unions with one score, the longer left part first."""
        scored = []
        for name, score, kind in zip(self.names, self.scores, self.types, strict=True):
            if kind not in (NORMAL, USER_DEFINED, UNUSED):
                continue
            pairs = [(name[:place], name[place:]) for place in range(1, len(name))]
            known = sorted(
                (pair for pair in pairs if pair[0] in vocab and pair[1] in vocab), key=lambda p: _ids(p, vocab)
            )
            scored += [(score, len(left), len(right), (left, right)) for left, right in known]
        return [pair for *_, pair in sorted(scored, key=lambda one: one[:3], reverse=True)]

    def _decoder(self) -> decoders.Decoder:
        steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if self.adds_space else steps)


def _ids(pair: tuple[str, str], vocab: dict[str, int]) -> tuple[int, int]:
    return vocab[pair[0]], vocab[pair[1]]


def read_model(content: bytes, path: Path, legacy: bool) -> Pieces:
    """The pieces of a `tokenizer.model`.

    Raises:
        ValueError: it is not one, not BPE, or changes characters before it cuts.
    """
    from sentencepiece import sentencepiece_model_pb2  # a third of a second, and most folders have a tokenizer.json

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(content)
    except Exception as error:  # protobuf raises DecodeError, which moved between its versions
        raise ValueError(f"{path}: truncated or not a model of sentencepiece ({error}). Copy it again") from None
    if not model.pieces or model.trainer_spec.model_type != model.trainer_spec.BPE:
        kind = model.trainer_spec.ModelType.Name(model.trainer_spec.model_type) if model.pieces else "none"
        raise ValueError(f"{path}: must be a BPE model, as the Llama family has, got {kind}")
    spec = model.normalizer_spec
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        rule = "identity without remove_extra_whitespaces, as the Llama family has"
        raise ValueError(f"{path}: the normalizer must be {rule}, got {spec.name} with {spec.remove_extra_whitespaces}")
    return Pieces(
        [piece.piece for piece in model.pieces],
        [piece.score for piece in model.pieces],
        [piece.type for piece in model.pieces],
        spec.add_dummy_prefix,
        legacy,
    )
