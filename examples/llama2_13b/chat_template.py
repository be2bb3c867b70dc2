"""How a conversation is written down: a JSON file with the texts around what user and model say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import jinja2
from jinja2.sandbox import SandboxedEnvironment


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
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"{path}: the chat template is not there") from None
        except ValueError as error:
            raise ValueError(f"{path}: not JSON: {error}") from None
        conversation = fields.get("conversation") if isinstance(fields, dict) else None
        if not isinstance(conversation, list) or len(conversation) != 2:
            raise ValueError(f'{path}: must be {{"system": text, "conversation": [user, bot]}}')
        template = cls(fields.get("system") or "", *conversation)
        try:
            probe = "\N{BLACK CHESS QUEEN}"
            shown = template.render((probe, probe), True)
        except jinja2.TemplateError as error:
            raise ValueError(f"{path}: not a Jinja template: {error}") from None
        for text, name in zip(shown, ("user", "bot"), strict=True):
            if probe not in text:
                raise ValueError(f"{path}: conversation must mention {{{{{name}}}}} in its {name} part")
        return template

    def render(self, turn: tuple[str, str], first: bool) -> tuple[str, str]:
        """(the text up to the answer, the answer) of one round."""
        user, bot = turn
        source = _render(self.user, user=user)
        return (_render(self.system) + source if first else source), _render(self.bot, bot=bot)


_jinja = SandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def _render(template: str, **values: str) -> str:
    return _jinja.from_string(template).render(**values)
