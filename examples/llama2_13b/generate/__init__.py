"""Prompts to answers: the exported program, its cache, how the next token is chosen."""
