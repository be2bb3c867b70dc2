"""Answers over HTTP: OpenAI's interface before the engine of `generate`."""
