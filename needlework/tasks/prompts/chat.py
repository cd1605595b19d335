"""Chat templates: the text around a prompt, rendered without transformers.

A template is the model maker's Jinja source beside the tokenizer. It is rendered once, around a
mark that stands for the prompt, in an environment with the names and settings that transformers
gives to templates; what stands before and behind the mark is the frame of every prompt.
"""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from needlework.reasoning.tags import CLOSE_TAG, OPEN_TAG
from needlework.tasks.prompts.prompt import Frame
from needlework.tasks.prompts.tokenizer import open_tokenizer, tokenizer_folder

# Quotes, brackets and a line break: a template that escapes its message does not pass unseen.
_MARK = """[needlework: "context" & <more>\n'question']"""
_SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


def open_frame(
    path: str | Path,
    revision: str | None = None,
    *,
    system_prompt: str | None = None,
    thinking_tokens: int = 0,
    date: str = "2025-01-01",
) -> Frame:
    """The frame that a checkpoint's own chat template makes.

    The prompt stands in it as it is, also where the template would strip it. Above 0,
    `thinking_tokens` switches thinking on (`enable_thinking` and `thinking` of the template); at 0
    it is off, and a thought that the template opens all the same is closed, empty.

    Args:
        path: folder of the checkpoint, or a hub name where there is a network.
            chat_template.jinja is read or, without it, `chat_template` of tokenizer_config.json.
        revision: commit or tag of a hub name.
        system_prompt: the system message; None leaves it to the template.
        thinking_tokens: room for thoughts.
        date: what the template takes for today, YYYY-MM-DD.

    Raises:
        ValueError: there is no template, it fails, refuses or drops the system message, changes
            the prompt, or knows nothing of thinking where it is asked for.
    """
    folder = tokenizer_folder(path, revision)
    config = _tokenizer_config(folder)
    source = _source(folder, config)
    thinks = thinking_tokens > 0
    names = {
        **_special_tokens(config),
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "enable_thinking": thinks,
        "thinking": thinks,
    }
    render = _renderer(_compiled(folder, source, date), names)

    text = _rendered(folder, render, system_prompt)
    if text.count(_MARK) != 1:
        raise ValueError(f"{folder}: the chat template changes or repeats its message")
    head, tail = text.split(_MARK)
    for token in _leading_special_tokens(folder):
        head = head.removeprefix(token)

    knows_thinking = any(name in source for name in ("enable_thinking", OPEN_TAG, CLOSE_TAG))
    if thinks and (not knows_thinking or tail.rstrip().endswith(CLOSE_TAG)):
        raise ValueError(
            f"{folder}: the chat template cannot switch thinking on; set thinking_tokens: 0"
        )
    if not thinks and tail.rstrip().endswith(OPEN_TAG):
        tail = f"{tail.rstrip()}\n\n{CLOSE_TAG}\n\n"
    return Frame(head, tail, system_prompt, prefills=not thinks)


def _rendered(
    folder: Path, render: Callable[[list[dict[str, str]]], str], system_prompt: str | None
) -> str:
    """The template around the mark, the system message in it if there is one."""
    user = [{"role": "user", "content": _MARK}]
    try:
        alone = render(user)
    except ValueError as error:
        raise ValueError(f"{folder}: the chat template fails: {error}") from None
    if system_prompt is None:
        return alone
    try:
        text = render([{"role": "system", "content": system_prompt}, *user])
    except ValueError as error:
        raise ValueError(
            f"{folder}: the chat template refuses a system message ({error}); "
            "leave system_prompt out"
        ) from None
    if system_prompt.strip() and text == alone:
        raise ValueError(
            f"{folder}: the chat template drops the system message; leave system_prompt out"
        )
    return text


def _renderer(template: Template, names: dict[str, Any]) -> Callable[[list[dict[str, str]]], str]:
    """What renders messages, any failure a ValueError of one line."""

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return template.render(messages=messages, **names)
        except Exception as error:  # a template is code: it can fail in any way
            raise ValueError(_one_line(error)) from None

    return render


class _Generation(Extension):
    """`{% generation %}`, by which transformers finds answers in a chat: its body as it is."""

    tags = frozenset({"generation"})

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _compiled(folder: Path, source: str, date: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    # A prompt is the same on any day.
    environment.globals["strftime_now"] = datetime.fromisoformat(date).strftime
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"{folder}: the chat template cannot be read: line {error.lineno}: {_one_line(error)}"
        ) from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own escapes HTML, and letters beyond ASCII.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _source(folder: Path, config: dict[str, Any]) -> str:
    """The template's text: of its own file first, as transformers takes it."""
    found = _read(folder, "chat_template.jinja")
    if found is None:
        found = config.get("chat_template")
    if isinstance(found, list):
        found = {named["name"]: named["template"] for named in found}.get("default")
    if not isinstance(found, str):
        raise ValueError(
            f"{folder}: has no chat template; set chat_template: false, or name an instruct model"
        )
    return found


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    text = _read(folder, "tokenizer_config.json")
    try:
        return {} if text is None else json.loads(text)
    except ValueError as error:
        raise ValueError(f"{folder}: tokenizer_config.json is not JSON: {error}") from None


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Name of each special token -> its text; written as text or as an object with `content`."""
    found = {name: config[name] for name in _SPECIAL_TOKENS if config.get(name) is not None}
    return {k: v["content"] if isinstance(v, dict) else v for k, v in found.items()}


def _leading_special_tokens(folder: Path) -> list[str]:
    """What the tokenizer puts before any text."""
    encoding = open_tokenizer(folder).encode("a")
    first = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
    return encoding.tokens[:first]


def _read(folder: Path, file: str) -> str | None:
    """The text of a file beside the tokenizer, None where there is none."""
    try:
        return (folder / file).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder}: {file} cannot be read: {_one_line(error)}") from None
