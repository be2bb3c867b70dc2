"""Token files to pretrain on, from texts.

    python -m examples.llama2_13b.tokenize_texts --model_name_or_path output/new \\
        --input_path TEXTS --output_prefix output/tokens/texts
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # python path/to/this/file, from any folder
    import repository  # noqa: F401

from tqdm import tqdm

from examples.llama2_13b.data import token_files
from examples.llama2_13b.data.documents import SUFFIXES, files_of, read_documents
from examples.llama2_13b.data.tokenizer import Tokenizer
from examples.llama2_13b.folders.model_folder import config_of
from examples.llama2_13b.io.flags import flag, main
from examples.llama2_13b.io.remarks import Screen
from examples.llama2_13b.io.reservation import reserved

PROGRAM = "examples.llama2_13b.tokenize_texts"


@dataclass(frozen=True)
class TokenizeFlags:
    """Named as in PaddleNLP's tool for the same files."""

    model_name_or_path: str = flag("folder with config.json and the tokenizer")
    input_path: str = flag(f"a text, JSON lines (.json, .jsonl), or a folder of {', '.join(SUFFIXES)} files")
    output_prefix: str = flag("PREFIX.bin and PREFIX.idx are written, with PREFIX.about.json")
    json_key: str = flag("field of a JSON line that holds its text", "text")
    doc_spliter: str = flag("the line between the documents of a text file; an empty one if not given", "")


def tokenize_texts(flags: TokenizeFlags) -> int:
    """Write the files.

    Each document is what prompts begin with too, its text, and an end token.

    Raises:
        ValueError, OSError: something in flags, tokenizer or texts is wrong; no file is left.
    """
    prefix = Path(flags.output_prefix)
    with reserved(prefix.parent, "tokenize_texts: --output_prefix", f".{prefix.name}.lock"):
        return _tokenize(flags, prefix)


def _tokenize(flags: TokenizeFlags, prefix: Path) -> int:
    if present := [path.name for path in token_files.paths(prefix) if path.exists()]:
        found = f"{prefix}; {', '.join(present)} would be replaced"
        raise ValueError(f"tokenize_texts: --output_prefix must be new, got {found}. Remove the files, or name another")
    files = files_of(Path(flags.input_path))
    tokenizer = Tokenizer.from_pretrained(flags.model_name_or_path)
    vocab_size = config_of(flags.model_name_or_path).vocab_size
    with token_files.writer(prefix, vocab_size, tokenizer.files["tokenizer.json"]) as written, _progress(files) as bar:
        for file in files:
            for _, text in read_documents(file, flags.json_key, flags.doc_spliter, bar.update):
                written.add([*tokenizer.begin, *tokenizer.encode(text), tokenizer.eos_token_id])
        if not written.documents:
            rule = f"text, or a folder of {', '.join(SUFFIXES)} files with text"
            raise ValueError(f"tokenize_texts: --input_path must be {rule}, got {flags.input_path}; nothing is in it")
    print(f"{prefix}.bin: {written.documents} documents, {written.tokens} tokens")
    return 0


def _progress(files: list[Path]) -> tqdm:
    screen = Screen(sys.stderr)
    return tqdm(
        total=sum(file.stat().st_size for file in files),
        unit="B",
        unit_scale=True,
        file=screen,
        dynamic_ncols=True,
        mininterval=0.1 if screen.isatty() else 10.0,  # seconds; a log file keeps every line
    )


if __name__ == "__main__":
    main(TokenizeFlags, tokenize_texts, PROGRAM)
