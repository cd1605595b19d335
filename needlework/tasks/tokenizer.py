"""Open a tokenizer without torch, and count with the whole text."""

from pathlib import Path

from tokenizers import Tokenizer


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint folder or, where there is a network, of a hub name.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    file = Path(path) / "tokenizer.json"
    try:
        if file.is_file():
            return Tokenizer.from_file(str(file))
        return Tokenizer.from_pretrained(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path}: no tokenizer to be read: {error}") from None


def uncut(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, or a copy of it where it is set to cut or pad what it encodes."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy
