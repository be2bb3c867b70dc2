"""Errors that callers see. Bad arguments are ValueError or TypeError; these are the rest."""

from __future__ import annotations


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
