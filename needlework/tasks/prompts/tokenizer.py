"""Open tokenizers without torch."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from needlework.config.models.tokenizer_files import TEMPLATES, TOKENIZER_FILES, has_vocabulary
from needlework.sources import hub
from needlework.sources.added_tokens import added_ids
from needlework.sources.tokenizer_conversion import converted

_NAMED = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


def tokenizer_folder(path: str | Path, revision: str | None = None) -> Path:
    """The folder with a tokenizer's files: `path`, or a download of the hub repository `path`.

    Raises:
        ValueError: there is no such folder and the hub does not provide the files.
    """
    if Path(path).is_dir():
        return Path(path)
    hub.unreachable()
    patterns = ["config.json", *TOKENIZER_FILES, *TEMPLATES]
    try:
        return Path(snapshot_download(str(path), revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's errors have no common base class
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            hub.explain_error(path, error)
            or f"{path}: no such folder, and the hub does not provide it ({reason}); write the "
            "path of a folder"
        ) from None


def open_tokenizer(path: str | Path | None, revision: str | None = None) -> Tokenizer:
    """Open the tokenizer of a checkpoint folder or hub repository, as AutoTokenizer does.

    None gives a tokenizer with one token per character, for models without a public tokenizer.

    Raises:
        ValueError: the tokenizer is missing or unreadable.
    """
    if path is None:
        tokenizer = Tokenizer(WordLevel({"any": 0}, unk_token="any"))
        tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
        return tokenizer
    folder = tokenizer_folder(path, revision)
    file = folder / "tokenizer.json"
    if not file.is_file():
        if not has_vocabulary(folder):
            raise ValueError(
                f"{path}: has no tokenizer.json; write the path of a checkpoint with one"
            )
        return Tokenizer.from_str(converted(folder))
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise ValueError(f"{path}: cannot read its tokenizer.json: {error}") from None
    _add_tokens(tokenizer, folder)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, folder: Path) -> None:
    """Add the tokens that only other files than tokenizer.json list, in transformers' order."""
    settings = _settings(folder)
    known = tokenizer.get_added_tokens_decoder()
    listed = settings.get("added_tokens_decoder", {})
    added = [_as_token(entry) for _, entry in sorted(listed.items(), key=lambda item: int(item[0]))]
    named = [settings[key] for key in _NAMED if settings.get(key)]
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens") or []
    special = [_as_token(entry) for entry in (*named, *(extra if isinstance(extra, list) else ()))]
    if not listed:
        names = {token.content for token in special}
        added = [
            AddedToken(text, normalized=text not in names, special=text in names)
            for text, _ in sorted(
                _json_object(folder / "added_tokens.json").items(), key=lambda item: item[1]
            )
            if all(text != token.content for token in known.values())
        ]
    states = [token.__getstate__() for token in known.values()]
    tokens = [token for token in added if token.__getstate__() not in states]
    texts = {token.content for token in (*known.values(), *tokens)}
    for token in special:
        if token.content not in texts:
            tokens.append(token)
            texts.add(token.content)
    tokenizer.add_tokens(tokens)


def _as_token(entry: str | dict[str, Any]) -> AddedToken:
    if isinstance(entry, str):
        return AddedToken(entry, special=True)
    return AddedToken(**{"special": True} | {k: v for k, v in entry.items() if k != "__type"})


def special_tokens(folder: Path) -> dict[str, str]:
    """Text of each named special token, such as bos_token.

    As in transformers, those of special_tokens_map.json take precedence over tokenizer_config.json,
    unless that has an added_tokens_decoder.

    Raises:
        ValueError: a file is not a JSON object.
    """
    tokens: dict[str, str] = {}
    for key, value in _settings(folder).items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _settings(folder: Path) -> dict[str, Any]:
    """The keys of tokenizer_config.json and, where transformers reads it, special_tokens_map.json.

    Raises:
        ValueError: a file is not a JSON object.
    """
    settings = _json_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in settings:
        return settings
    return {**settings, **_json_object(folder / "special_tokens_map.json")}


def _json_object(file: Path) -> dict[str, Any]:
    """The content of a JSON file; nothing if there is no such file."""
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_bytes()).items())
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{file}: cannot be read: {error}; fetch it again") from None


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
