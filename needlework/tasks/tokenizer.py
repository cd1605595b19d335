"""Open a tokenizer without torch, and count with the whole text."""

from pathlib import Path

from huggingface_hub import snapshot_download
from tokenizers import Tokenizer


def tokenizer_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder with a tokenizer's files: `path`, or where there is none, that of a hub name.

    Raises:
        ValueError: there is no such folder, and the hub does not give one.
    """
    if Path(path).is_dir():
        return Path(path)
    files = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=files))
    except Exception as error:  # the hub's failures have no common class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path}: no such folder, and not to be had from the hub: {reason}"
        ) from None


def open_tokenizer(path: str | Path, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint folder or, where there is a network, of a hub name.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    file = tokenizer_folder(path, revision) / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{path}: has no tokenizer.json; name a checkpoint that has one")
    try:
        return Tokenizer.from_file(str(file))
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
