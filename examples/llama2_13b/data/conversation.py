"""A whole conversation in tokens, by the chat template that a model folder has.

A server renders messages in two lines:

    tokenizer = Tokenizer.from_pretrained(folder)
    ids = encode_messages([{"role": "user", "content": "Hi"}], tokenizer, template_of(folder))
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path

from examples.llama2_13b.data.chat_template import TEMPLATE, ChatTemplate
from examples.llama2_13b.data.jinja_template import ASSISTANT, JinjaTemplate, Message, strings_of
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.data.tokenizer_folder import HUGGING_FACE_TEMPLATE, TokenizerFolder
from examples.llama2_13b.io.text import ENCODING, require_text

Template = ChatTemplate | JinjaTemplate
EncodedTurn = tuple[list[int], list[int]]  # source, target
Question = tuple[str, str | None]  # what the user says, and the answer if there is one


def template_of(folder: str | Path) -> Template | None:
    """What a model folder writes conversations with; None if it says nothing.

    `chat_template.json` wins: `sft` and `lora` write it for what they trained with.

    Raises:
        FileNotFoundError, ValueError: as `TokenizerFolder`, or the template is none.
    """
    own = Path(folder) / TEMPLATE
    if own.exists():
        return ChatTemplate.from_json(own)
    described = TokenizerFolder(folder)
    if found := described.chat_template():
        text, where = found
        return JinjaTemplate(text, described.named_tokens(), where)
    return None


def template_from(file: str | Path, folder: str | Path) -> Template:
    """The template in a file: Hugging Face's if its name ends with `.jinja`, with the tokens of the model's folder.

    Raises:
        FileNotFoundError, ValueError: it is not there, or no template.
    """
    path = Path(file)
    if path.suffix != Path(HUGGING_FACE_TEMPLATE).suffix:
        return ChatTemplate.from_json(path)
    try:
        text = path.read_text(encoding=ENCODING)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: the chat template is not there") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: must be text in UTF-8: {error}") from None
    return JinjaTemplate(text, TokenizerFolder(folder).named_tokens(), str(path))


def encode_messages(messages: Sequence[Message], tokenizer: Tokenizer, template: Template | None) -> list[int]:
    """The token ids that the model is given to answer the messages.

    Those of transformers' `apply_chat_template(messages, add_generation_prompt=True)`, but for names of control tokens
    in a message: they are encoded as characters. `chat_template.json` knows the roles user and assistant, in turn.

    Args:
        messages: `{"role": text, "content": text}` each, the last of them not the assistant's.
        template: of `template_of`.

    Raises:
        ValueError: there is no template, it refuses the messages, or a message is not as above.
    """
    for number, message in enumerate(messages, start=1):
        for name in ("role", "content"):
            if not isinstance(message.get(name), str):
                raise ValueError(f"messages: message {number} must have a text {name!r}, got {message.get(name)!r}")
        for text in strings_of(message):
            require_text(text, f"messages: every text of message {number}")
    if template is None:
        raise ValueError("messages: the model must have a chat template, got none. Send a prompt instead")
    if isinstance(template, JinjaTemplate):
        return tokenizer.encode_parts(template.parts(messages, tokenizer.control_names, True))
    return _by_turns(messages, tokenizer, template)


def _by_turns(messages: Sequence[Message], tokenizer: Tokenizer, template: ChatTemplate) -> list[int]:
    roles = [message["role"] for message in messages]
    expected = [("user", ASSISTANT)[number % 2] for number in range(len(roles))]
    if not roles or roles != expected or roles[-1] == ASSISTANT:
        raise ValueError(f"messages: roles must be user and assistant in turn, the last user, got {', '.join(roles)}")
    ids: list[int] = []
    for number in range(0, len(messages), 2):
        answer = messages[number + 1]["content"] if number + 1 < len(messages) else ""
        source, target = template.render((messages[number]["content"], answer), number == 0)
        ids += begun(tokenizer.encode_parts(source), tokenizer) if number == 0 else tokenizer.encode_parts(source)
        if number + 1 < len(messages):
            ids += ended(tokenizer.encode_parts(target), tokenizer)
    return ids


def begun(source: list[int], tokenizer: Tokenizer) -> list[int]:
    """A conversation begins as the tokenizer begins texts, once."""
    begin = list(tokenizer.begin)
    return source if source[: len(begin)] == begin else [*begin, *source]


def ended(target: list[int], tokenizer: Tokenizer) -> list[int]:
    """An answer ends with the end token, unless the template writes it."""
    return target if tokenizer.eos_token_id in target else [*target, tokenizer.eos_token_id]


def encode_turns(turns: Sequence[Question], tokenizer: Tokenizer, template: JinjaTemplate) -> list[EncodedTurn]:
    """(source, target) of each turn, where the whole conversation is one text: a target is what the assistant says.

    Raises:
        ValueError: the template fails, or what the assistant says cannot be told.
    """
    answered = [turn for turn in turns if turn[1] is not None]
    told: list[EncodedTurn] = []
    if answered:
        told = _runs(tokenizer.encode_answers(template.answers(messages_of(answered), tokenizer.control_names)))
    if len(told) != len(answered):
        rule = f"{len(answered)} answers apart from each other, got {len(told)}"
        raise ValueError(f"{template.where}: must write {rule}. Look at its {{% generation %}}")
    if answered == list(turns):
        return told
    done = [token for source, target in told for token in (*source, *target)]
    prompt = encode_messages(messages_of(turns), tokenizer, template)
    if prompt[: len(done)] != done:
        rule = "written the same before a question as before an answer, got another text. Leave out --src_length"
        raise ValueError(f"{template.where}: earlier turns must be {rule}")
    return [*told, (prompt[len(done) :], [])]


def messages_of(turns: Sequence[Question]) -> list[dict[str, str]]:
    each = [(("user", question), (ASSISTANT, answer)) for question, answer in turns]
    return [{"role": role, "content": text} for pair in each for role, text in pair if text is not None]


def _runs(tokens: list[tuple[int, bool]]) -> list[EncodedTurn]:
    """Tokens that are not the assistant's, and those that follow and are; what comes after the last goes."""
    turns: list[EncodedTurn] = []
    source: list[int] = []
    is_after_source = True
    for token, is_said in tokens:
        if not is_said:
            source.append(token)
        elif is_after_source:
            turns.append((source, [token]))
            source = []
        else:
            turns[-1][1].append(token)
        is_after_source = not is_said
    return turns


def fit_turns(
    turns: Sequence[Question], tokenizer: Tokenizer, src_length: int, max_length: int, template: JinjaTemplate
) -> tuple[list[EncodedTurn], int, int]:
    """The last turns that fit into max_length tokens, how many were left out, and by how many tokens sources shrank."""
    template = template.at_once()
    for number in range(len(turns)):
        kept, shortened = _within(list(turns[number:]), tokenizer, src_length, template)
        if kept[-1][1] is None:
            encoded: list[EncodedTurn] = [(encode_messages(messages_of(kept), tokenizer, template), [])]
        else:
            encoded = encode_turns(kept, tokenizer, template)
            _require_ends(encoded, tokenizer, template)
        if sum(len(source) + len(target) for source, target in encoded) <= max_length:
            break
    return encoded, number, shortened


def _require_ends(turns: list[EncodedTurn], tokenizer: Tokenizer, template: JinjaTemplate) -> None:
    for number, (_, target) in enumerate(turns, start=1):
        if tokenizer.end_token_ids.isdisjoint(target):
            rule = f"end with a token at which generation stops, id {sorted(tokenizer.end_token_ids)}"
            raise ValueError(
                f"{template.where}: answer {number} must {rule}, got none: answers would never end. Correct "
                "eos_token_id in config.json or generation_config.json, or write it in the template"
            )


def _within(
    turns: list[Question], tokenizer: Tokenizer, src_length: int, template: JinjaTemplate
) -> tuple[list[Question], int]:
    """The turns with questions that lost words at the front, where a source had more tokens, and the tokens lost."""
    lost = 0
    if src_length == sys.maxsize:
        return turns, lost
    for number, (source, _) in enumerate(encode_turns(turns, tokenizer, template)):
        if len(source) > src_length:
            turns[number], length = _shortened(turns, number, tokenizer, src_length, template)
            lost += len(source) - length
    return turns, lost


def _shortened(
    turns: list[Question], number: int, tokenizer: Tokenizer, src_length: int, template: JinjaTemplate
) -> tuple[Question, int]:
    question, answer = turns[number]
    starts = [*tokenizer.starts(question), len(question)]

    def length(start: int) -> int:
        changed = [*turns[:number], (question[starts[start] :], answer), *turns[number + 1 :]]
        return len(encode_turns(changed, tokenizer, template)[number][0])

    if (least := length(-1)) > src_length:
        rule = f"at least {least}, the tokens of the chat template alone"
        raise ValueError(f"data: src_length must be {rule}, got {src_length}. Raise --src_length")
    start = bisect_left(range(len(starts)), True, key=lambda place: length(place) <= src_length)
    return (question[starts[start] :], answer), length(start)
