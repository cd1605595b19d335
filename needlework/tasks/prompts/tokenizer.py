"""Open tokenizers without torch."""

import json
from pathlib import Path

from huggingface_hub import snapshot_download
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from needlework.sources import hub
from needlework.sources.added_tokens import added_ids

_FILES = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
]


def tokenizer_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder with a tokenizer's files: `path`, or a download of the hub repository `path`.

    Raises:
        ValueError: there is no such folder and the hub does not provide the files.
    """
    if Path(path).is_dir():
        return Path(path)
    hub.unreachable()
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=_FILES))
    except Exception as error:  # the hub's errors have no common base class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            hub.explain_error(path, error)
            or f"{path}: no such folder, and the hub does not provide it ({reason}); write the "
            "path of a folder"
        ) from None


def open_tokenizer(path: str | Path | None, revision: str | None = None) -> Tokenizer:
    """Open the tokenizer of a checkpoint folder or hub repository.

    None gives a tokenizer with one token per character, for models without a public tokenizer.

    Raises:
        ValueError: the tokenizer is missing or unreadable.
    """
    if path is None:
        tokenizer = Tokenizer(WordLevel({"any": 0}, unk_token="any"))
        tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        return tokenizer
    file = tokenizer_folder(path, revision) / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{path}: has no tokenizer.json; write the path of a checkpoint with one")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path}: cannot read its tokenizer.json: {error}") from None


def special_tokens(folder: Path) -> dict[str, str]:
    """Text of each named special token, such as bos_token.

    As in transformers, those of special_tokens_map.json take precedence over tokenizer_config.json,
    unless that has an added_tokens_decoder.

    Raises:
        ValueError: a file is not a JSON object.
    """
    tokens: dict[str, str] = {}
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if not file.is_file():
            continue
        try:
            entries = dict(json.loads(file.read_bytes()).items())
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(f"{file}: cannot be read: {error}; fetch it again") from None
        for key, value in entries.items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                tokens[key] = text
        if "added_tokens_decoder" in entries:
            break
    return tokens


def start_ids(path: str | Path, revision: str | None, bos: str) -> list[int] | None:
    """Ids that start each text of a stream whose key bos is `bos`; None: what the tokenizer adds.

    Raises:
        ValueError: bos is each_window, and the tokenizer neither adds a token before a text nor
            names a bos_token.
    """
    if bos != "each_window":
        return [] if bos == "none" else None
    tokenizer = open_tokenizer(path, revision)
    if prepended := added_ids(tokenizer)[0]:
        return prepended
    token = special_tokens(tokenizer_folder(path, revision)).get("bos_token")
    token_id = None if token is None else tokenizer.token_to_id(token)
    if token_id is None:
        raise ValueError(
            f"bos each_window: the tokenizer of {path} has no BOS token (bos_token: {token!r}); "
            "write bos: none"
        )
    return [token_id]


def end_token_id(path: str | Path, revision: str | None = None) -> int:
    """The id of the end-of-text token (`eos_token`, see `special_tokens`).

    Raises:
        ValueError: the file names no token of the tokenizer.
    """
    folder = tokenizer_folder(path, revision)
    file = folder / "tokenizer_config.json"
    token = special_tokens(folder).get("eos_token")
    token_id = None if token is None else open_tokenizer(path, revision).token_to_id(token)
    if token_id is None:
        raise ValueError(
            f"{file}: eos_token is {token!r}, which the tokenizer does not have; write one of its "
            "tokens"
        )
    return token_id
