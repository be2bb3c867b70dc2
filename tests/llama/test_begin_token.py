"""Whether a text begins with a begin token, beside transformers, which asks the same files."""

from __future__ import annotations

import json

import pytest
from tokenizers import processors
from transformers import AutoTokenizer, LlamaTokenizer

from examples.llama2_13b.data.begin_token import written_by
from examples.llama2_13b.data.chat_template import ChatTemplate
from examples.llama2_13b.data.conversation import encode_messages
from examples.llama2_13b.data.samples import fit, joined
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.config import LlamaConfig
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.generate import prompts
from examples.llama2_13b.serving import forms
from examples.llama2_13b.serving.errors import RequestError
from examples.llama2_13b.serving.served_model import ServedModel
from tests.llama.gguf_files import write
from tests.llama.test_sentencepiece import trained
from tests.llama.test_tokenizer import byte_level, spaces_first

TEXTS = ("hello world", "a </s", "类型", "x" * 40)
SIZES = {"vocab_size": 700, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "num_key_value_heads": 2,
         "max_position_embeddings": 64, "rms_norm_eps": 1e-5}  # fmt: skip


def folder_of(folder, backend, about, **config):
    (folder / "config.json").write_text(json.dumps({**SIZES, "eos_token_id": 2, **config}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", **about}))
    if backend is not None:
        backend.save(str(folder / "tokenizer.json"))
    return folder


def beginning(backend):
    """As Llama 3's: two steps, of which the second writes the token."""
    number = backend.token_to_id("<s>")
    template = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "<s>", "$B"], special_tokens=[("<s>", number)]
    )
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return backend


def served(tokenizer):
    return ServedModel("m", tokenizer, None, 64, 700, None, (2,), (), None, 63)


def plain(tokenizer, text):
    """As predict and training encode it; the same must come from the server."""
    tokens = joined(fit([(text, None)], tokenizer, 64, 64, None)[0])
    assert forms._prompts(text, False, served(tokenizer))[0] == [tokens]
    return tokens


def assert_same_ids(ours, theirs):
    begin = set()
    for text in TEXTS:
        expected = theirs(text)["input_ids"]
        assert plain(ours, text) == expected, text
        begin.add(expected != theirs(text, add_special_tokens=False)["input_ids"])
    (has_begin,) = begin
    assert bool(ours.begin) == has_begin
    return has_begin


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("backend, begins", [(spaces_first, True), (byte_level, True), (byte_level, False)])
def test_plain_prompts_are_those_of_transformers(tmp_path, backend, begins, add_bos):
    """add_bos_token has no effect beside a tokenizer.json, there and here."""
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>"}
    about |= {} if add_bos is None else {"add_bos_token": add_bos}
    folder_of(tmp_path, beginning(backend()) if begins else backend(), about, bos_token_id=1)
    ours, theirs = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert assert_same_ids(ours, theirs) == begins
    template = ChatTemplate("", "<{{user}}>", "{{bot}}")
    said = encode_messages([{"role": "user", "content": "hi"}], ours, template)
    assert said == [*ours.begin, *ours.encode("<hi>")] and bool(ours.begin) == begins


def test_a_model_like_qwen2_needs_no_begin_token(tmp_path):
    about = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "add_bos_token": False}
    folder_of(tmp_path, byte_level(), about, model_type="qwen2", bos_token_id=None)
    ours, theirs = Tokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "Qwen2Tokenizer" and not assert_same_ids(ours, theirs)
    config = config_of(tmp_path)
    assert config.bos_token_id is None and config.to_dict()["bos_token_id"] is None
    assert LlamaConfig.from_dict(config.to_dict(), "again") == config
    with pytest.raises(ValueError, match="predict: prompt 1 must be at least one token long, got none"):
        prompts.encode(prompts.from_texts([""]), ours, None, None, 64, "")
    with pytest.raises(RequestError, match="prompt must be of at least one token"):
        forms._prompts("", False, served(ours))


def test_a_begin_token_that_texts_get_must_stand_in_config_json(tmp_path):
    folder_of(tmp_path, beginning(byte_level()), {"bos_token": "<s>"}, bos_token_id=None)
    with pytest.raises(ValueError, match=r"config.json: bos_token_id must be 1, the id of '<s>' \(.*\), got null"):
        Tokenizer.from_pretrained(tmp_path)
    fields = json.loads((tmp_path / "tokenizer.json").read_text())
    fields["added_tokens"] = [token for token in fields["added_tokens"] if token["content"] != "<s>"]
    del fields["model"]["vocab"]["<s>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer.json must be a token of tokenizer.json, got '<s>'"):
        Tokenizer.from_pretrained(tmp_path)


def test_our_own_tokenizers_begin_texts_for_transformers_too(tiny_folder):
    assert assert_same_ids(Tokenizer.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder))


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_tokenizer_model_alone_begins_texts_unless_told_otherwise(tmp_path, add_bos):
    """Llama 2's own folders say true. Without the field transformers 5 has none, while its documentation says true."""
    about = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>"}
    about |= {} if add_bos is None else {"add_bos_token": add_bos}
    folder_of(tmp_path, None, about, bos_token_id=1)
    (tmp_path / "tokenizer.model").write_bytes(trained())
    ours = Tokenizer.from_pretrained(tmp_path)
    if add_bos is None:
        assert ours.begin == (1,)
    else:
        assert assert_same_ids(ours, LlamaTokenizer.from_pretrained(tmp_path)) == add_bos
    ours.save(tmp_path)  # with a tokenizer.json now
    assert Tokenizer.from_pretrained(tmp_path).begin == ours.begin


@pytest.mark.parametrize(
    "changes, begins",
    [
        ({}, False),
        ({"add_bos_token": True}, True),
        ({"add_bos_token": False, "bos_token_id": None}, False),
        ({"add_bos_token": True, "pre": "qwen2"}, True),
        ({"add_bos_token": False, "pre": "llama-bpe"}, False),
    ],
)
def test_a_gguf_file_says_whether_texts_begin_with_a_token(tiny_folder, tmp_path, changes, begins):
    path = write_changed(tiny_folder, tmp_path, changes)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert assert_same_ids(Tokenizer.from_pretrained(path), theirs) == begins
    assert config_of(path).bos_token_id == (None if "bos_token_id" in changes else 1)


def write_changed(folder, tmp_path, changes):
    named = {f"tokenizer.ggml.{name}": value for name, value in changes.items()}
    return write(tmp_path / "model.gguf", folder, changes=named)


def test_gguf_files_that_do_not_say_mean_what_llama_cpp_takes_them_for(tiny_folder, tmp_path):
    """Source: llama.cpp's src/llama-vocab.cpp: a begin token with sentencepiece's, and with Llama 3's cut."""
    assert Tokenizer.from_pretrained(write_changed(tiny_folder, tmp_path, {"pre": "llama-bpe"})).begin == (1,)
    names = ["<unk>", "<s>", "</s>", "a", "b", "ab"]
    changes = {"model": "llama", "tokens": names, "scores": [0.0] * 3 + [-3.0, -2.0, -1.0], "merges": None,
               "token_type": [2, 3, 3, 1, 1, 1], "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    for said, begin in ((None, (1,)), (True, (1,)), (False, ())):
        path = write_changed(tiny_folder, tmp_path, {**changes, "add_bos_token": said})
        ours = Tokenizer.from_pretrained(path)
        assert ours.begin == begin and (config_of(path).bos_token_id, ours.eos_token_id) == (1, 2)


@pytest.mark.parametrize(
    "changes, ends",
    [
        ({"eot_token_id": 7}, (2, 7)),
        ({"eot_token_id": 7, "eom_token_id": 9}, (2, 7, 9)),
        ({"eot_token_id": 2, "eom_token_id": 5000}, (2,)),  # one that is no token says nothing, as in llama.cpp
    ],
)
def test_answers_end_at_a_gguf_files_ends_of_turns_and_messages(tiny_folder, tmp_path, changes, ends):
    path = write_changed(tiny_folder, tmp_path, changes)
    assert config_of(path).eos_token_ids == ends
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer.eos_token_id == 2 and tokenizer.end_token_ids == set(ends)


def test_what_a_post_processor_writes():
    assert written_by(None) == {} == written_by(json.loads(processors.ByteLevel().__getstate__()))
    state = json.loads(beginning(byte_level()).post_processor.__getstate__())
    assert written_by(state) == {"bos_token": "<s>"}
