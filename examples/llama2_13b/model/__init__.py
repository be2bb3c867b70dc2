"""The Llama, and its adapters."""

from examples.llama2_13b.model.llama import Llama

__all__ = ["Llama"]
