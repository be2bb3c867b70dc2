"""What a GGUF file holds, for those who read it as it is."""

from __future__ import annotations

from collections import Counter
from pathlib import Path


def described(path: Path) -> tuple[str, int]:
    """(types of its matrices with the share of elements, bytes of weights that a step reads at the least).

    A step takes a row a token of the embedding, unless the embedding is the head as well.
    """
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    has_head = any(tensor.name == "output.weight" for tensor in tensors)
    read = [tensor for tensor in tensors if not (has_head and tensor.name == "token_embd.weight")]
    elements: Counter[str] = Counter()
    for tensor in read:
        if len(tensor.shape) > 1:
            elements[tensor.tensor_type.name] += int(tensor.n_elements)
    whole = sum(elements.values())
    types = ", ".join(f"{name} {count / whole:.0%}" for name, count in elements.most_common())
    return types, sum(int(tensor.n_bytes) for tensor in read)
