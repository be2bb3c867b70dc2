"""`tokenizer.model` beside sentencepiece itself and beside transformers' LlamaTokenizer, on texts that are hard."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import sentencepiece
import tokenizers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from examples.llama2_13b.data.sentencepiece_model import Pieces, read_model
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.data.tokenizer_folder import TokenizerFolder
from tests.llama.conftest import DATA
from tests.llama.gguf_files import write

HARD = (
    "", " ", "   ", "a", " a", "a ", "  two  spaces  ", "\t\n\r\n x", "aaaaaaaaaaaaa", "abababababab", "<s>x</s>",
    "\u2581", "\u2581a \u2581", "naïve e\u0301 ﬁ ½ ㎏", "“温故而知新”", "👩‍👩‍👧\ud7ff\u200b", "🦜 𝔘𝔫𝔦", "\x00\x7f",
    "1234567890 3.14", "don't!!??...", "日本語 한국어", "<0x41> <0x0A>", "the the the cat", "x" * 300,
)  # fmt: skip


# transformers adds no space where a text begins with one.
NO_SPACE_FIRST = [text for text in HARD if text[:1] not in (" ", "\u2581")]


def trained(**options):
    lines = [json.loads(line) for line in (DATA / "train.json").read_text(encoding="utf-8").splitlines()]
    model = io.BytesIO()
    given = {
        "model_type": "bpe", "vocab_size": 700, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "split_digits": True, "allow_whitespace_only_pieces": True,
        "character_coverage": 0.98, "minloglevel": 2, "num_threads": 1,
    }  # fmt: skip
    texts = [text for line in lines[::8] for text in (line["src"], line["tgt"]) if isinstance(text, str)]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **{**given, **options})
    return model.getvalue()


@pytest.fixture(scope="module")
def model():
    """As Llama 2's: identity, a space in front, bytes for what it does not know."""
    return trained(user_defined_symbols=["<mark>"])


def ids_by(content, text):
    return sentencepiece.SentencePieceProcessor(model_proto=content).encode(text)


@pytest.mark.parametrize("options", [{}, {"add_dummy_prefix": False}], ids=["space", "no_space"])
def test_hard_texts_are_cut_as_sentencepiece_cuts_them(options):
    content = trained(**options)
    backend = read_model(content, "tokenizer.model", False).backend()
    backend.encode_special_tokens = True
    for text in NO_SPACE_FIRST if not options else HARD:
        assert backend.encode(text, add_special_tokens=False).ids == ids_by(content, text), text


@pytest.mark.parametrize("options", [{"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}])
def test_a_model_that_changes_characters_is_refused(options):
    with pytest.raises(ValueError, match="tokenizer.model: the normalizer must be identity without"):
        read_model(trained(**options), "tokenizer.model", False)


@pytest.mark.parametrize("legacy", [False, True])
def test_texts_and_control_tokens_are_those_of_transformers(model, tmp_path, legacy):
    (tmp_path / "tokenizer.model").write_bytes(model)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "bos_token": "<s>", "eos_token": "</s>"})
    )
    theirs = LlamaTokenizer.from_pretrained(tmp_path, legacy=legacy)
    backend = read_model(model, "tokenizer.model", legacy).backend()
    ours = PreTrainedTokenizerFast(tokenizer_object=backend)
    for text in (*HARD, *(f"<s> {text} </s> x" for text in HARD), "a<mark> b"):
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours(text, add_special_tokens=False)["input_ids"] == expected, text
        assert backend.decode(expected) == theirs.decode(expected, skip_special_tokens=True)


def test_a_folder_with_tokenizer_model_alone_is_read_and_saved_with_both(model, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 700}))
    (folder / "tokenizer.model").write_bytes(model)
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.encode("</s> and <mark>") and 2 not in tokenizer.encode("</s>")
    for text in NO_SPACE_FIRST:
        plain = text.replace("<", "(")
        assert tokenizer.encode(plain) == ids_by(model, plain)
        assert tokenizer.decode(tokenizer.encode(plain)) == sentencepiece.SentencePieceProcessor(
            model_proto=model
        ).decode(ids_by(model, plain))
    (tmp_path / "saved").mkdir()
    tokenizer.save(tmp_path / "saved")
    assert (tmp_path / "saved" / "tokenizer.model").read_bytes() == model
    again = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert again.encode("the cat", add_special_tokens=False).ids == tokenizer.encode("the cat")


def test_a_gguf_file_with_such_pieces_cuts_alike(model, tiny_folder, tmp_path):
    pieces = read_model(model, "tokenizer.model", False)
    keys = {"model": "llama", "tokens": pieces.names, "scores": pieces.scores, "token_type": pieces.types}
    changes = {f"tokenizer.ggml.{name}": value for name, value in keys.items()}
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    path = write(tmp_path / "model.gguf", folder, changes={**changes, "tokenizer.ggml.merges": None})
    backend = TokenizerFolder(path).backend()
    backend.encode_special_tokens = True
    for text in NO_SPACE_FIRST:
        assert backend.encode(text, add_special_tokens=False).ids == ids_by(model, text), text


def test_what_is_no_bpe_model_is_refused(model):
    with pytest.raises(ValueError, match="tokenizer.model: must be a BPE model, as the Llama family has, got UNIGRAM"):
        read_model(trained(model_type="unigram"), "tokenizer.model", False)
    for damaged in (b"", model[: len(model) // 2], b"no model"):
        with pytest.raises(ValueError, match="tokenizer.model: "):
            read_model(damaged, "tokenizer.model", False)


def test_pairs_with_one_union_come_in_the_order_of_the_pieces():
    names, scores = ["<unk>", "a", "b", "ab", "abb", "bb"], [0.0, -4.0, -5.0, -1.0, -2.0, -3.0]
    pieces = Pieces(names, scores, [2, 1, 1, 1, 1, 1], adds_space=False)
    assert pieces._merges({name: number for number, name in enumerate(names)}) == [
        ("a", "b"), ("ab", "b"), ("a", "bb"), ("b", "b")
    ]  # fmt: skip
