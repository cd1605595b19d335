"""Open a tokenizer without torch, and count with the whole text."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from needlework.sources import hub


def tokenizer_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder with a tokenizer's files: `path`, or where there is none, that of a hub name.

    Raises:
        ValueError: there is no such folder, and the hub does not give one.
    """
    if Path(path).is_dir():
        return Path(path)
    files = ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    hub.unreachable()
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=files))
    except Exception as error:  # the hub's failures have no common class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            hub.why(path, error)
            or f"{path}: no such folder, and not to be had from the hub ({reason}); name a folder"
        ) from None


def open_tokenizer(path: str | Path | None, revision: str | None = None) -> Tokenizer:
    """The tokenizer of a checkpoint folder or, where there is a network, of a hub name.

    None is for models whose tokenizer nobody has: each character is a token.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    if path is None:
        tokenizer = Tokenizer(WordLevel({"any": 0}, unk_token="any"))
        tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        return tokenizer
    file = tokenizer_folder(path, revision) / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{path}: has no tokenizer.json; name a checkpoint that has one")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path}: no tokenizer to be read: {error}") from None


def end_token(path: str | Path, revision: str | None = None) -> int:
    """The id of the token that ends a text, by the checkpoint's tokenizer_config.json.

    Raises:
        ValueError: it names none that the tokenizer has.
    """
    file = tokenizer_folder(path, revision) / "tokenizer_config.json"
    try:
        token = json.loads(file.read_bytes()).get("eos_token")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: not to be read: {error}; fetch it again") from None
    token = token.get("content") if isinstance(token, dict) else token
    found = None if token is None else open_tokenizer(path, revision).token_to_id(token)
    if found is None:
        raise ValueError(f"{file}: eos_token is {token!r}, no token of the tokenizer; write one")
    return found


def uncut(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer, or a copy of it where it is set to cut or pad what it encodes."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy
