"""Which ids a text has: a user's text has no control tokens, a template's has, and files that disagree are refused."""

from __future__ import annotations

import json
import shutil

import pytest
import tokenizers
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from examples.llama2_13b.data.chat_template import ChatTemplate
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.data.tokenizer_folder import TokenizerFolder, without_chat_template
from examples.llama2_13b.folders.config import LlamaConfig

NAMES = ("<pad>", "<s>", "</s>", "<unk>", "[INST]", "[/INST]")
CONFIG = LlamaConfig(600, 16, 16, 1, 2, 64, 1e-5)
TEXTS = ["hello world, hello [x] <s", "the </s>nd", "类型 hello", "  two  spaces "]
SAID = ["</s><s>", "a </s> b", "<pad><unk>", " [INST] hello [/INST]", "<s>", "</s", "x<</s>>", "hello"]


def byte_level():
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=list(NAMES), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 5, trainer)
    return backend


def spaces_first():
    """As newer Llama tokenizers: a space is put before a text, not before what follows a control token."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=False)
    alphabet = [chr(code) for code in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(NAMES), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS * 5, trainer)
    return backend


BACKENDS = {"byte_level": byte_level, "spaces_first": spaces_first}


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]()


def reference(backend, text, **options):
    """The ids of transformers."""
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer.from_str(backend.to_str()), extra_special_tokens=list(NAMES)
    )
    return theirs(text, add_special_tokens=False, **options)["input_ids"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_around_control_tokens_is_encoded_as_transformers_does(backend, text):
    whole = f"<s>[INST] {text} [/INST] ok </s>{text}"
    expected = reference(backend, whole)
    tokenizer = Tokenizer(backend, CONFIG, {})
    assert tokenizer.encode(whole, special=True) == expected
    if "</s>" not in text:
        parts = [("<s>[INST] ", True), (text, False), (" [/INST] ok </s>", True), (text, False)]
        assert tokenizer.encode_parts(parts) == expected


@pytest.mark.parametrize("text", SAID)
def test_what_a_user_wrote_has_no_control_tokens(backend, text):
    expected = reference(backend, text, split_special_tokens=True)
    tokenizer = Tokenizer(backend, CONFIG, {})
    control = {tokenizer.encode(name, special=True)[0] for name in NAMES}
    assert tokenizer.encode(text) == expected
    assert control.isdisjoint(expected)
    assert tokenizer.decode(expected) == (text.lstrip() if "Metaspace" in backend.to_str() else text)
    around = tokenizer.encode_parts([("<s>[INST] ", True), (text, False), (" [/INST]", True)])
    names = {number: name for name, number in tokenizer._control_ids.items()}
    assert [names[token] for token in around if token in control] == ["<s>", "[INST]", "[/INST]"]


def test_pieces_of_a_name_do_not_join_over_the_edge_of_a_users_text(backend):
    tokenizer = Tokenizer(backend, CONFIG, {})
    for before, said, after in (("<", "/s>", ""), ("", "</", "s>"), ("</", "s", ">")):
        ids = tokenizer.encode_parts([(before, True), (said, False), (after, True)])
        assert ids == tokenizer.encode("</s>") and 2 not in ids


def test_a_vocabulary_that_finds_control_tokens_in_text_gives_their_halves():
    pieces = ["<pad>", "<s>", "</s>", "<unk>", "▁", "<", "/", "s", ">", "a"]
    backend = tokenizers.Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=3))
    backend.add_special_tokens(list(NAMES[:4]))
    ids = Tokenizer(backend, CONFIG, {}).encode("a</s>aü<s>")
    assert [pieces[number] for number in ids] == ["a", "<", "/", "s", ">", "a", "<unk>", "<", "s", ">"]


@pytest.mark.parametrize("text", ["a </s> b", "</s></s>", "x<s>", "<s>"])
def test_a_name_in_text_gets_no_spaces_from_a_tokenizer_that_begins_with_one(text):
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "<": 4, "/": 5, "s": 6, ">": 7, "a": 8, "b": 9, "x": 10}
    vocab |= {"<s": 11, "</": 12, "</s": 13}
    merges = [("<", "s"), ("<s", ">"), ("<", "/"), ("</", "s"), ("</s", ">")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = Tokenizer(backend, CONFIG, {}, NAMES)
    ids = tokenizer.encode(text)
    assert {1, 2}.isdisjoint(ids) and tokenizer.decode(ids) == text


def test_marks_that_no_file_calls_special_are_no_users_to_write():
    """Added tokens in brackets, and tokens that tokenizer_config.json names; other added words are words."""
    backend = byte_level()
    backend.add_tokens(["<|im_start|>", "[USER]", "fusionkit"])
    tokenizer = Tokenizer(backend, CONFIG, {}, control=["hello", "nowhere"])
    marks = {backend.token_to_id(name) for name in ("<|im_start|>", "[USER]")}
    assert marks.isdisjoint(tokenizer.encode("a <|im_start|>b [USER]"))
    assert marks < set(tokenizer.encode("a <|im_start|>b [USER]", special=True))
    assert tokenizer.encode("fusionkit") == [backend.token_to_id("fusionkit")]
    assert tokenizer.decode(tokenizer.encode("<|im_start|>", special=True)) == "<|im_start|>"
    assert tokenizer.encode("hello", special=True) == [backend.token_to_id("hello")] != tokenizer.encode("hello")
    assert (
        tokenizer.decode([backend.token_to_id("hello")]) == ""
        and tokenizer.decode(tokenizer.encode("hello")) == "hello"
    )


def test_an_answer_shows_text_and_no_control_tokens(backend):
    tokenizer = Tokenizer(backend, CONFIG, {})
    ids = [1, *tokenizer.encode("see </s> and"), 2, 3]
    assert tokenizer.decode(ids) == "see </s> and"
    assert "<" not in tokenizer.decode(range(550, 600))  # a vocabulary padded beyond the tokenizer


def test_expressions_of_a_template_keep_what_the_template_wrote_apart():
    tokenizer = Tokenizer(byte_level(), CONFIG, {})
    plain = ChatTemplate("", "<s>[INST] {{user}} [/INST]", " {{bot}} </s>")
    joined = ChatTemplate("", "{{ '<s>[INST] ' + user + ' [/INST]' }}", "{{ ' ' ~ bot ~ ' </s>' }}")
    filtered = ChatTemplate("", "<s>[INST] {{ user | trim }} [/INST]", " {{ bot | replace('xx', '') }} {{ '</s>' }}")
    for template, said in ((joined, "a </s> b"), (filtered, " a </s> b ")):
        expected = plain.render(("a </s> b", "c </s>"), True)
        found = (
            template.render((said, "c </sxx>"), True)
            if template is filtered
            else template.render((said, "c </s>"), True)
        )
        for one, other in zip(found, expected, strict=True):
            assert tokenizer.encode_parts(one) == tokenizer.encode_parts(other)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "model")


def change(path, **fields):
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))


def test_lengths_that_transformers_left_in_a_tokenizer_are_not_ours(folder):
    before = Tokenizer.from_pretrained(folder).encode("hello " * 50)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    theirs(["hello", "a b c"], truncation=True, max_length=4, padding="max_length")
    theirs.save_pretrained(folder)
    fields = json.loads((folder / "tokenizer.json").read_text())
    assert fields["truncation"]["max_length"] == 4 and fields["padding"]
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.encode("hello " * 50) == before and len(before) > 50
    assert len(tokenizer.encode("a")) == 1 and len(tokenizer.encode("", special=True)) == 0
    assert tokenizer.starts("ab ab")[0] == 0 and max(tokenizer.starts("hello " * 50)) > 280
    assert tokenizer.files["tokenizer.json"] == (folder / "tokenizer.json").read_bytes()


def test_dropout_of_a_tokenizer_does_not_change_a_text(folder):
    fields = json.loads((folder / "tokenizer.json").read_text())
    before = Tokenizer.from_pretrained(folder).encode("hello world " * 20)
    fields["model"]["dropout"] = 0.9
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    assert Tokenizer.from_pretrained(folder).encode("hello world " * 20) == before


def test_begin_and_end_of_config_and_tokenizer_must_be_one(folder):
    """tokenizer_config.json, then special_tokens_map.json, then the post-processor, then the names."""
    change(folder / "config.json", bos_token_id=0, eos_token_id=1)
    fields = json.loads((folder / "tokenizer.json").read_text())
    saying = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (folder / "tokenizer_config.json").unlink()
    for name, source in (
        ("tokenizer.json", "its name"),
        ("special_tokens_map.json", "bos_token of special_tokens_map.json"),
        ("tokenizer_config.json", "bos_token of tokenizer_config.json"),
    ):
        if name != "tokenizer.json":
            (folder / name).write_text(json.dumps(saying))
        with pytest.raises(ValueError) as error:
            Tokenizer.from_pretrained(folder)
        words = ("config.json: ", "bos_token_id must be 1", "'<s>'", source, "got 0", "eos_token_id must be 2", "got 1")
        assert all(word in str(error.value) for word in words), error.value
    change(folder / "config.json", bos_token_id=1, eos_token_id=2)
    assert Tokenizer.from_pretrained(folder).eos_token_id == 2
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink()
    single = [{"SpecialToken": {"id": "<pad>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<pad>": {"id": "<pad>", "ids": [0], "tokens": ["<pad>"]}}
    fields["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": special,
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"bos_token_id must be 0, the id of '<pad>' \(the post_processor"):
        Tokenizer.from_pretrained(folder)


def test_of_several_ends_the_tokenizers_is_learned(folder):
    change(folder / "config.json", eos_token_id=[3, 2, 5])
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.eos_token_id == 2 and tokenizer.end_token_ids == {2, 3, 5}
    change(folder / "config.json", eos_token_id=[3, 5])
    with pytest.raises(ValueError, match=r"eos_token_id must be 2, the id of '</s>' \(.*\), got 3, 5"):
        Tokenizer.from_pretrained(folder)


def test_an_end_that_the_tokenizer_does_not_have_is_named(folder):
    change(folder / "tokenizer_config.json", eos_token="<|end|>")
    with pytest.raises(ValueError, match=r"eos_token of tokenizer_config.json must be a token .*got '<\|end\|>'"):
        Tokenizer.from_pretrained(folder)


@pytest.mark.parametrize("ends, right", [(2, True), ([7, 2], True), (None, True), (1, False), ([0, 7], False)])
def test_generation_must_stop_at_the_end_that_is_learned(folder, ends, right):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    if right:
        TokenizerFolder(folder).require_end(2)
    else:
        with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id must be 2.*got "):
            TokenizerFolder(folder).require_end(2)


@pytest.mark.parametrize("number", [512, 5000])
@pytest.mark.parametrize("is_padding", [False, True])
def test_a_token_without_a_row_is_named(folder, number, is_padding):
    fields = json.loads((folder / "tokenizer.json").read_text())
    added = dict(fields["added_tokens"][0], id=number, content="[PAD]")
    fields["added_tokens"].append(added)
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    change(folder / "config.json", **({"pad_token_id": number} if is_padding else {}))
    with pytest.raises(ValueError) as error:
        Tokenizer.from_pretrained(folder)
    for word in ("tokenizer.json", "'[PAD]'", str(number), "vocab_size 512", "resize_token_embeddings"):
        assert word in str(error.value)


def test_a_word_without_a_row_is_named_also_when_there_are_few(folder):
    fields = json.loads((folder / "tokenizer.json").read_text())
    word, _ = max(fields["model"]["vocab"].items(), key=lambda item: item[1])
    fields["model"]["vocab"][word] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="with ids below vocab_size 512 .* of id 5000"):
        Tokenizer.from_pretrained(folder)


def test_an_added_token_that_would_silently_get_another_id_is_named(folder):
    change(folder / "config.json", vocab_size=1000)
    fields = json.loads((folder / "tokenizer.json").read_text())
    fields["added_tokens"].append(dict(fields["added_tokens"][0], id=700, content="[X]"))
    (folder / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"'\[X\]' must have id 512, .* got 700"):
        Tokenizer.from_pretrained(folder)


def test_more_rows_than_tokens_are_fine(folder):
    change(folder / "config.json", vocab_size=1000)
    assert Tokenizer.from_pretrained(folder).vocab_size == 512


def test_templates_of_hugging_face_go_along_or_are_left_out(folder):
    change(folder / "tokenizer_config.json", chat_template="{{ messages }}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    tokenizer = Tokenizer.from_pretrained(folder)
    assert "chat_template.jinja" in tokenizer.files
    files = without_chat_template(tokenizer.files)
    assert set(tokenizer.files) - set(files) == {"chat_template.jinja"}
    assert "chat_template" not in json.loads(files["tokenizer_config.json"])
    assert json.loads(files["tokenizer_config.json"])["eos_token"] == "</s>"
