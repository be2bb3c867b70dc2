"""How a conversation is written down: a JSON file with the texts around what user and model say."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
from jinja2 import nodes
from jinja2.sandbox import SandboxedEnvironment

from examples.llama2_13b.data.tokenizer import Part
from examples.llama2_13b.io.text import parse_object, require_text

TEMPLATE = "chat_template.json"  # in a model folder


@dataclass(frozen=True)
class ChatTemplate:
    """Three Jinja templates.

    Args:
        system: stands before the first round; may be empty.
        user: of `{{user}}`, what the user says in a round.
        bot: of `{{bot}}`, what the model answers; all that is learned.
    """

    system: str
    user: str
    bot: str

    @classmethod
    def from_json(cls, path: str | Path) -> ChatTemplate:
        """From `{"system": text, "conversation": [user, bot]}`.

        Raises:
            ValueError: not such a file, or a template that does not mention what it is for.
        """
        try:
            fields = parse_object(Path(path).read_bytes(), path)
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: the chat template is not there") from None
        system, conversation = fields.get("system") or "", fields.get("conversation")
        texts = [system, *conversation] if isinstance(conversation, list) else []
        if len(texts) != 3 or not all(isinstance(text, str) for text in texts):
            raise ValueError(f'{path}: must be {{"system": text, "conversation": [user, bot]}}')
        for text in texts:
            require_text(text, f"{path}: every template")
        template = cls(*texts)
        try:
            probe = "\N{BLACK CHESS QUEEN}"
            shown = template.render((probe, probe), True)
        except (jinja2.TemplateError, TypeError) as error:
            raise ValueError(f"{path}: not a Jinja template: {error}") from None
        for parts, name in zip(shown, ("user", "bot"), strict=True):
            if not any(probe in text for text, _ in parts):
                raise ValueError(f"{path}: conversation must mention {{{{{name}}}}} in its {name} part")
        return template

    def render(self, turn: tuple[str, str], first: bool) -> tuple[list[Part], list[Part]]:
        """(the text up to the answer, the answer) of one round, in parts: only what the template wrote is special."""
        user, bot = turn
        source = _render(self.user, user=user)
        return (_render(self.system) + source if first else source), _render(self.bot, bot=bot)


# Around each value that a template inserts. These halves of surrogate pairs are in no Unicode text.
_START, _STOP = "\ud800", "\udfff"


def _render(template: str, **values: str) -> list[Part]:
    pieces = re.split(f"{_START}(.*?){_STOP}", _compiled(template).render(**values), flags=re.DOTALL)
    return [(text, number % 2 == 0) for number, text in enumerate(pieces) if text]


@functools.cache
def _compiled(template: str) -> jinja2.Template:
    tree = _jinja.parse(template)
    for output in tree.find_all(nodes.Output):
        output.nodes = [part for node in output.nodes for part in _split(node)]
    return _jinja.from_string(tree)


def _split(node: nodes.Expr) -> Iterator[nodes.Expr]:
    """`{{ "<s>" + user }}` as `<s>{{ user }}`: the constants of an expression are the template's own text."""
    if isinstance(node, nodes.Const):
        yield nodes.TemplateData(str(node.value))
    elif isinstance(node, nodes.Concat) or (isinstance(node, nodes.Add) and _joins_text(node)):
        for part in node.nodes if isinstance(node, nodes.Concat) else (node.left, node.right):
            yield from _split(part)
    else:
        yield node


def _joins_text(node: nodes.Expr) -> bool:
    if isinstance(node, nodes.Add):
        return _joins_text(node.left) or _joins_text(node.right)
    return isinstance(node, nodes.Const) and isinstance(node.value, str)


_jinja = SandboxedEnvironment(
    undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=lambda value: f"{_START}{value}{_STOP}"
)
