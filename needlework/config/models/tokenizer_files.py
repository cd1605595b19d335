"""Files of a tokenizer and its chat templates, as transformers names them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

VOCABULARIES = (
    "tokenizer.json",
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("tekken.json", "vocab.json", "vocab.txt"),
)
"""Each is enough for transformers to make a tokenizer of, with its merges.txt if it has one."""
TOKENIZER_FILES = (
    *VOCABULARIES,
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
TEMPLATES = (
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    # Of processors, which hold a tokenizer.
    *("chat_template.json", "processor_config.json"),
)
"""Templates apart from those of tokenizer_config.json."""


def files_in(folder: str | Path, patterns: Iterable[str]) -> list[str]:
    """Files in a folder that match a pattern, sorted."""
    return sorted({str(file) for pattern in patterns for file in Path(folder).glob(pattern)})


def has_vocabulary(folder: str | Path) -> bool:
    """Whether a folder has a tokenizer."""
    return bool(files_in(folder, VOCABULARIES))


def chat_templates(folder: str | Path) -> dict[str, str]:
    """The chat templates of a checkpoint by name, the usual one as "default".

    Files take precedence over tokenizer_config.json, as in transformers. A processor's template is
    the default of a tokenizer that has none.

    Raises:
        ValueError: a file cannot be read, or is not a JSON object.
    """
    folder = Path(folder)
    own = _json(folder / "tokenizer_config.json").get("chat_template")
    templates = {"default": own} if isinstance(own, str) else {}
    if isinstance(own, list):
        templates = {entry["name"]: entry["template"] for entry in own}
    for file in map(Path, files_in(folder, ["additional_chat_templates/*.jinja"])):
        templates[file.stem] = _text(file)
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = _text(folder / "chat_template.jinja")
    for name in ("chat_template.json", "processor_config.json"):
        template = _json(folder / name).get("chat_template")
        if isinstance(template, str):
            templates.setdefault("default", template)
    return templates


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(_text(file)).items())
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file}: is not a JSON object ({error}); download it again") from None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{file}: cannot be read: {reason}") from None
