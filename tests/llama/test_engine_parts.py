"""What the engine is made of, each part alone: blocks and their owners, text in whole characters, stop strings."""

from __future__ import annotations

import itertools

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from examples.llama2_13b.generate.block_manager import BlockManager, next_key
from examples.llama2_13b.generate.stop_strings import StopStrings
from examples.llama2_13b.generate.text_stream import TextStream

BAD = "\N{REPLACEMENT CHARACTER}"


def keys_of(*blocks):
    return list(itertools.accumulate(blocks, next_key, initial=b""))[1:]


def test_a_key_names_its_block_and_all_before_it():
    assert keys_of([1, 2], [3, 4]) == keys_of((1, 2), (3, 4))
    assert keys_of([1, 2], [3, 4])[1] != keys_of([1, 9], [3, 4])[1]
    assert keys_of([1, 2], [3, 4])[1] != keys_of([3, 4])[0]


def test_blocks_without_a_key_are_taken_first_then_the_one_that_was_free_for_longest():
    manager = BlockManager(5, 2)
    first = manager.acquire((), 2)
    second = manager.acquire((), 2)
    for block, key in zip([*first, second[0]], keys_of([1], [2], [3]), strict=True):
        manager.publish(block, key)
    manager.release(first)
    manager.release(second)
    manager.check([])
    order = [manager.acquire((), 1)[0] for _ in range(5)]
    assert set(order[:2]) == {4, second[1]}
    assert order[2:] == [first[1], first[0], second[0]]
    assert manager.acquire((), 1) is None and manager.acquire((), 0) == []
    assert manager.find(keys_of([1])) == []


def test_a_prefix_is_found_as_far_as_it_goes():
    manager = BlockManager(4, 2)
    blocks = manager.acquire((), 3)
    keys = keys_of([1], [2], [3])
    manager.publish(blocks[0], keys[0])
    manager.publish(blocks[2], keys[2])
    assert manager.find(keys) == blocks[:1] and manager.find(keys_of([5])) == []


def test_a_shared_block_is_free_when_all_have_left():
    manager = BlockManager(3, 2)
    blocks = manager.acquire((), 1)
    manager.publish(blocks[0], b"k")
    both = manager.acquire(manager.find([b"k"]), 1)
    assert both[0] == blocks[0]
    manager.check([blocks, both])
    manager.release(blocks)
    manager.check([both])
    manager.release(both)
    manager.check([])
    assert manager.find([b"k"]) == blocks
    again = manager.acquire(blocks, 2)
    manager.check([again])
    with pytest.raises(RuntimeError, match="must have an owner to be released"):
        manager.release([*again, again[0]])


def test_what_cannot_be_given_changes_nothing():
    manager = BlockManager(2, 2)
    (block,) = manager.acquire((), 1)
    manager.publish(block, b"k")
    manager.release([block])
    assert manager.acquire([block], 2) is None  # the shared one is among the two that are free
    manager.check([])
    assert sorted(manager.acquire([block], 1)) == [0, 1]


def byte_level():
    """A token for each byte, as GPT-2 spells them."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback():
    """As Llama 2's: words with "▁" for a space in front, which the first one loses, and a token for each byte."""
    words = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁cat", "s", "<s>"]
    model = models.BPE({word: number for number, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = tokenizers.Tokenizer(model)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


def pieces(tokenizer, tokens):
    stream = TextStream(tokenizer.decode)
    return [*(stream.push(token) for token in tokens), stream.flush()]


TEXTS = ["plain", "naïve café", "温故而知新", "😀😀 a 😀", "é\N{COMBINING ACUTE ACCENT}", "real " + BAD + " one"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_character_of_many_bytes_comes_whole(text):
    tokenizer = byte_level()
    tokens = tokenizer.encode(text).ids
    assert len(tokens) == len(text.encode())
    found = pieces(tokenizer, tokens)
    assert "".join(found) == text == tokenizer.decode(tokens)
    assert [piece for piece in found if piece] == list(text.replace(BAD + " ", BAD + "_")) or BAD in text


BYTE_LEVEL = byte_level()
# GPT-2's spelling: printable bytes stand for themselves, the others from U+0100 on.
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]
_SPELLED = {byte: chr(byte) for byte in _PRINTED}
_SPELLED |= {byte: chr(256 + n) for n, byte in enumerate(byte for byte in range(256) if byte not in _PRINTED)}
BYTE_IDS = {byte: BYTE_LEVEL.token_to_id(letter) for byte, letter in _SPELLED.items()}


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_any_bytes_become_the_text_that_they_are_together(data):
    tokens = [BYTE_IDS[byte] for byte in data]
    assert "".join(pieces(BYTE_LEVEL, tokens)) == data.decode(errors="replace")


def test_many_bytes_that_are_no_character_do_not_wait_for_the_end():
    found = pieces(BYTE_LEVEL, [BYTE_IDS[0xFF]] * 100)
    assert "".join(found) == BAD * 100
    assert len(found[-1]) <= 8


def test_words_keep_their_spaces_and_bytes_between_them_their_order():
    tokenizer = byte_fallback()
    emoji = [1 + byte for byte in "😀".encode()]
    space, the, cat, s, bos = (tokenizer.token_to_id(word) for word in ("▁", "▁the", "▁cat", "s", "<s>"))
    tokens = [bos, the, cat, s, *emoji, *emoji, the, bos, cat, space, bos, cat, space, space, s]
    found = pieces(tokenizer, tokens)
    assert "".join(found) == "the cats😀😀 the cat  cat  s" == tokenizer.decode(tokens)
    assert found[:8] == ["", "the", " cat", "s", "", "", "", "😀"]


def test_a_character_that_never_ends_loses_nothing_that_comes_after_it():
    tokenizer = byte_fallback()
    emoji = [1 + byte for byte in "😀".encode()]
    the = tokenizer.token_to_id("▁the")
    assert "".join(pieces(tokenizer, [the, *emoji, emoji[0], the])).endswith(" the")
    assert "😀" in "".join(pieces(tokenizer, [the, *emoji, emoji[0]]))


def test_what_is_decoded_again_does_not_grow_with_the_answer():
    """Models in trouble write new lines, spaces or control tokens without an end."""
    bytewise, fallback = byte_level(), byte_fallback()
    bytewise.add_special_tokens(["<end>"])
    repeated = [
        (bytewise, bytewise.token_to_id(name) if name == "<end>" else bytewise.encode(name).ids[0])
        for name in ("\n", " ", "a", "<end>")
    ]
    repeated += [(fallback, fallback.token_to_id("▁")), (bytewise, 10**6), (fallback, 1 + ord("\n"))]
    for tokenizer, token in repeated:
        lengths = []

        def decode(tokens, lengths=lengths, tokenizer=tokenizer):
            lengths.append(len(tokens))
            return tokenizer.decode(tokens)

        stream, tokens = TextStream(decode), [token] * 100
        last = tokenizer.token_to_id("▁cat") or tokenizer.encode("é").ids[0]
        found = "".join([*map(stream.push, tokens), stream.push(last), stream.flush()])
        assert found == tokenizer.decode([*tokens, last])
        assert max(lengths) < 24


def cut(text, stops, borders):
    """(the text, whether it was stopped) when it comes in pieces that end at the borders."""
    stream, out = StopStrings(stops), ""
    for start, end in itertools.pairwise([0, *borders, len(text)]):
        piece, stopped = stream.push(text[start:end])
        out += piece
        if stopped:
            return out, True
    return out + stream.flush(), False


def letter_by_letter(text, stops):
    """What is meant: after each letter, see whether one of the stop strings has just come."""
    for end in range(len(text) + 1):
        come = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if come:
            return text[: end - max(come)], True
    return text, False


@given(
    st.text("ab", max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 12), max_size=6),
)
@settings(max_examples=1000, deadline=None)
def test_a_stop_string_is_found_however_the_text_is_cut(text, stops, places):
    borders = sorted(min(place, len(text)) for place in places)
    assert cut(text, stops, borders) == letter_by_letter(text, stops)


def test_text_waits_only_while_it_could_be_the_beginning_of_a_stop_string():
    stream = StopStrings(("</end>", "stop"))
    assert stream.push("a <b> <") == ("a <b> ", False)
    assert stream.push("/") == ("", False)
    assert stream.push("e s") == ("</e ", False)
    assert stream.push("t") == ("", False)
    assert stream.push("op!") == ("", True)
    assert StopStrings(()).push("anything") == ("anything", False)
