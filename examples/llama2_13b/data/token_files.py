"""Token files: PREFIX.bin holds the tokens of many documents, PREFIX.idx where each begins. Both are memory-mapped.

The format is Megatron-LM's "indexed dataset", version 1, little-endian (megatron/core/datasets/indexed_dataset.py), as
Megatron's and PaddleNLP's users have it. The index:

    9s magic, Q version, B code of the tokens' dtype, Q number of sequences, Q number of borders
    int32 [sequences]   tokens of each sequence
    int64 [sequences]   the byte of PREFIX.bin at which it begins
    int64 [borders]     for each document the number of its first sequence; then the number of sequences

What Megatron's tools write may have several sequences a document. Here a document is one sequence. PREFIX.about.json,
which only this project writes, says by which tokenizer the tokens were made, and their checksum.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from examples.llama2_13b.io import atomic
from examples.llama2_13b.io.text import parse_object

HEADER = struct.Struct("<9sQBQQ")
MAGIC, VERSION = b"MMIDIDX\x00\x00", 1
# 6 and 7 are floating dtypes. 9 and 10 are PaddleNLP's.
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2", 9: "<u4", 10: "<u8"}
LARGEST_UINT16 = 65500  # Megatron's: a vocabulary below it has 2 bytes a token, any other 4
CHUNK = 2**20  # entries of the index that are in memory at a time
SAMPLED, SAMPLE = 1024, 2**14  # places of PREFIX.bin that its fingerprint reads, and bytes at each; all of 16 MiB


def paths(prefix: Path) -> tuple[Path, Path, Path]:
    """Tokens, what is said about them, index."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.about.json"), Path(f"{prefix}.idx")


def checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Writer:
    """Writes documents one after the other; nothing but counts is kept in memory."""

    def __init__(self, tokens: BinaryIO, index: BinaryIO, vocab_size: int) -> None:
        self._tokens, self._index, self._digest = tokens, index, hashlib.sha256()
        self._code = 8 if vocab_size < LARGEST_UINT16 else 4
        self._dtype = np.dtype(DTYPES[self._code])
        self.documents = self.tokens = 0
        index.write(bytes(HEADER.size))

    def add(self, ids: Sequence[int]) -> None:
        content = np.array(ids, self._dtype).tobytes()
        self._tokens.write(content)
        self._digest.update(content)
        self._index.write(struct.pack("<i", len(ids)))
        self.documents += 1
        self.tokens += len(ids)

    def finish(self) -> str:
        """Complete the index; the tokens' checksum."""
        begin = 0
        for start in range(0, self.documents, CHUNK):
            self._index.seek(HEADER.size + 4 * start)
            num_bytes = np.frombuffer(self._index.read(4 * min(CHUNK, self.documents - start)), "<i4").astype("<i8")
            num_bytes *= self._dtype.itemsize
            ends = begin + np.cumsum(num_bytes)
            self._index.seek(0, 2)
            self._index.write((ends - num_bytes).tobytes())
            begin = ends[-1]
        for start in range(0, self.documents + 1, CHUNK):
            self._index.write(np.arange(start, min(start + CHUNK, self.documents + 1), dtype="<i8").tobytes())
        self._index.seek(0)
        self._index.write(HEADER.pack(MAGIC, VERSION, self._code, self.documents, self.documents + 1))
        return self._digest.hexdigest()


@contextmanager
def writer(prefix: Path, vocab_size: int, tokenizer: bytes) -> Iterator[Writer]:
    """The files appear when the block ends well, the index last.

    Args:
        prefix: of the files' names.
        vocab_size: above every id.
        tokenizer: content of the tokenizer.json that makes the tokens.
    """
    with atomic.new_files(*paths(prefix)) as (tokens, about, index):
        with tokens.open("wb") as tokens_file, index.open("w+b") as index_file:
            made = Writer(tokens_file, index_file, vocab_size)
            yield made
            digest = made.finish()
        counts = {"documents": made.documents, "tokens": made.tokens, "vocab_size": vocab_size}
        digests = {"tokenizer_sha256": checksum(tokenizer), "tokens_sha256": digest}
        about.write_text(json.dumps(counts | digests, indent=2) + "\n", encoding="utf-8")


class TokenFiles:
    """Documents of token files, read where they are asked for.

    Raises:
        FileNotFoundError: one of the pair is missing.
        ValueError: they are not of the format, or not whole.
    """

    def __init__(self, prefix: Path) -> None:
        self.tokens_path, self._about_path, self.index_path = paths(prefix)
        for path in (self.index_path, self.tokens_path):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: not found; token files are a pair of PREFIX.bin and PREFIX.idx")
        self._dtype, sequences, borders = self._read_header()
        self._sizes = self._mapped("<i4", sequences, HEADER.size)
        self._pointers = self._mapped("<i8", sequences, HEADER.size + 4 * sequences)
        self._borders = self._mapped("<i8", borders, HEADER.size + 12 * sequences)
        self.num_documents = borders - 1
        self.num_tokens = self.tokens_path.stat().st_size // self._dtype.itemsize
        self._require_consistent()
        self._tokens = np.memmap(self.tokens_path, self._dtype, "r")

    def _read_header(self) -> tuple[np.dtype[Any], int, int]:
        with self.index_path.open("rb") as file:
            content = file.read(HEADER.size)
        if len(content) < HEADER.size or not content.startswith(MAGIC):
            raise self._wrong(f"begin with {MAGIC!r}, the index of Megatron's format", repr(content[: len(MAGIC)]))
        _, version, code, sequences, borders = HEADER.unpack(content)
        if version != VERSION:
            raise self._wrong(f"be of version {VERSION}", version)
        if code not in DTYPES:
            raise self._wrong(f"be of integer tokens, with a dtype code among {', '.join(map(str, DTYPES))}", code)
        expected, found = HEADER.size + 12 * sequences + 8 * borders, self.index_path.stat().st_size
        if found != expected:
            rule = f"be {expected} bytes long, for {sequences} sequences and {borders} borders of documents"
            raise self._wrong(rule, f"{found}; it is truncated, or has modes of a multimodal data set")
        if sequences == 0 or borders < 2:
            raise self._wrong("be of at least one document", "none")
        return np.dtype(DTYPES[code]), sequences, borders

    def _mapped(self, dtype: str, count: int, offset: int) -> NDArray[Any]:
        return np.memmap(self.index_path, dtype, "r", offset, (count,))

    def _require_consistent(self) -> None:
        """Each sequence begins where the one before ends, the last ends with the file, and borders ascend."""
        begin = 0
        for start in range(0, len(self._sizes), CHUNK):
            num_bytes = self._sizes[start : start + CHUNK].astype(np.int64) * self._dtype.itemsize
            ends = begin + np.cumsum(num_bytes)
            if (num_bytes < 0).any() or (self._pointers[start : start + CHUNK] != ends - num_bytes).any():
                raise self._wrong("be of sequences that follow each other", f"other places after sequence {start}")
            begin = int(ends[-1])
        if (found := self.tokens_path.stat().st_size) != begin:
            raise ValueError(f"{self.tokens_path}: must be {begin} bytes long by {self.index_path.name}, got {found}")
        ascend = all(
            (np.diff(self._borders[start : start + CHUNK + 1]) >= 0).all()
            for start in range(0, len(self._borders), CHUNK)
        )
        if not ascend or self._borders[0] != 0 or self._borders[-1] != len(self._sizes):
            raise self._wrong(f"be of documents that ascend from sequence 0 to {len(self._sizes)}", "other borders")

    def _wrong(self, rule: str, found: object) -> ValueError:
        return ValueError(f"{self.index_path}: must {rule}, got {found}")

    @cached_property
    def about(self) -> dict[str, Any]:
        """What tokenize_texts said of the tokens; nothing of files that others wrote."""
        return parse_object(self._about_path.read_bytes(), self._about_path) if self._about_path.exists() else {}

    @cached_property
    def fingerprint(self) -> str:
        """Of the index, of the tokens' checksum where it was written, and of 1024 places of the tokens.

        A large file is not read as a whole for it. One of up to 16 MiB is.
        """
        digest = hashlib.sha256(str(self.about.get("tokens_sha256")).encode())
        with self.index_path.open("rb") as file:
            while content := file.read(CHUNK):
                digest.update(content)
        size = self._tokens.nbytes
        with self.tokens_path.open("rb", buffering=0) as file:
            for start in np.unique(np.linspace(0, max(0, size - SAMPLE), SAMPLED, dtype=np.int64)):
                file.seek(start)
                digest.update(file.read(SAMPLE))
        return digest.hexdigest()[:16]

    def start(self, document: int) -> int:
        """The place of its first token; of the document after the last the number of tokens."""
        sequence = int(self._borders[document])
        at_end = sequence == len(self._pointers)
        return self.num_tokens if at_end else int(self._pointers[sequence]) // self._dtype.itemsize

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        return self._tokens[start:stop].astype(np.int64)
