"""Errors that callers see. Bad arguments are ValueError or TypeError; these are the rest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FusionkitError(Exception):
    """Base of every error that is not about an argument."""


class NoBackendError(FusionkitError, RuntimeError):
    """No backend accepts the call. The text lists every candidate with its reasons."""


class PluginError(FusionkitError, RuntimeError):
    """A backend's plugin breaks the interface: wrong version, wrong signature, or a name offered twice."""


class SettingError(FusionkitError, ValueError):
    """An environment variable, configuration file or policy names something that does not exist."""


def argument_error(
    op: str,
    argument: str,
    rule: str,
    got: object,
    context: str = "",
    advice: str = "",
    kind: type[Exception] = ValueError,
) -> Exception:
    """The project's one form: `<op>: <argument> must be <rule>, got <value>; <context>. <what to do>`."""
    text = f"{op}: {argument} must be {rule}, got {got}"
    if context:
        text += f"; {context}"
    if advice:
        text += f". {advice}"
    return kind(text)


def nearest(word: str, words: Iterable[str]) -> str:
    """ "did you mean ...?", or the list of what there is."""
    words = sorted(words)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(words)}"
