"""The Llama, its configuration, its parameters, and the folders that hold it."""

from examples.llama2_13b.model.llama import Llama

__all__ = ["Llama"]
