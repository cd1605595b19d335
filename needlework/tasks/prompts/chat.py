"""Chat templates: the text around a prompt, rendered without transformers.

A chat template is Jinja source that ships with the tokenizer. It is rendered once around a
placeholder, with the variables and settings that transformers gives to templates. The text before
and after the placeholder frames every prompt.
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

from needlework.config.models.thought import ThoughtFormat
from needlework.config.models.tokenizer_files import chat_templates
from needlework.reasoning.formats import (
    THINK,
    complete_final,
    format_of,
    opens_reasoning,
    unknown_opener,
)
from needlework.tasks.prompts.prompt import ChatFrame, Parts
from needlework.tasks.prompts.tokenizer import open_tokenizer, special_tokens, tokenizer_folder

# Quotes, brackets and a line break reveal templates that escape the message.
_PLACEHOLDER = """[needlework: "context" & <more>\n'question']"""
_NUMBERED = _PLACEHOLDER.replace("needlework", "needlework {}")
_SPECIAL_TOKENS = tuple(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)


def load_chat_frame(
    path: str | Path,
    revision: str | None = None,
    *,
    template: str | None = None,
    system_prompt: str | None = None,
    thinking_tokens: int = 0,
    thought_format: ThoughtFormat | dict[str, str] | None = None,
    date: str = "2025-01-01",
) -> ChatFrame:
    """Render the chat template of a checkpoint into a frame.

    The prompt enters the frame verbatim, even if the template would strip it. `thinking_tokens`
    above 0 enables thinking (the template's `enable_thinking` and `thinking`); 0 disables it, and
    a thinking block that the template opens anyway is closed empty.

    Args:
        path: checkpoint folder or hub name; see `chat_templates` for the files that are read.
        revision: commit or tag of a hub name.
        template: the template's name; None: the default one.
        system_prompt: the system message; None leaves it to the template.
        thinking_tokens: token budget for thinking.
        thought_format: the format of its reasoning; None: the known one in the template.
        date: the date that the template sees as today, YYYY-MM-DD.

    Raises:
        ValueError: the template is missing, fails, rejects or drops the system message, changes
            the prompt, does not support the requested thinking, or ends in an unknown tag that
            opens reasoning.
    """
    folder = tokenizer_folder(path, revision)
    source = _template_source(folder, template)
    thinks = thinking_tokens > 0
    tokens = {k: v for k, v in special_tokens(folder).items() if k in _SPECIAL_TOKENS}
    variables = {
        **tokens,
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        "enable_thinking": thinks,
        "thinking": thinks,
    }
    render = _renderer(_compile(folder, source, date), variables)

    text = _render_placeholder(folder, render, system_prompt)
    if text.count(_PLACEHOLDER) != 1:
        raise ValueError(f"{folder}: the chat template changes or repeats its message")
    head, tail = text.split(_PLACEHOLDER)
    leading = _leading_special_tokens(folder)
    head = _without_leading(head, leading)

    own = None if thought_format is None else ThoughtFormat.model_validate(thought_format)
    thought = format_of(source, own) or format_of(tail)
    if own is None and (thought is None or not opens_reasoning(tail, thought)):
        opener = unknown_opener(tail, source, tokens.values())
        if opener is not None:
            raise ValueError(
                f"{folder}: the chat template ends with {opener}, which seems to open reasoning in "
                f"an unknown format; set thought_format: {{open: {opener!r}, close: ...}}"
            )
    used = thought or THINK
    knows_thinking = thought is not None or "enable_thinking" in source
    if thinks and (not knows_thinking or tail.rstrip().endswith(used.close)):
        raise ValueError(
            f"{folder}: the chat template cannot enable thinking; set thinking_tokens: 0"
        )

    def parts_of(roles: tuple[str, ...]) -> Parts:
        first, *between, last = _parts(folder, render, roles)
        last = last if thinks else _without_thinking(last, used)
        return (_without_leading(first, leading), *between, last)

    tail = tail if thinks else _without_thinking(tail, used)
    return ChatFrame(
        head, tail, system_prompt, not thinks, None if used == THINK else used, parts_of
    )


def _without_leading(head: str, tokens: list[str]) -> str:
    """The head without the special tokens that the tokenizer adds itself."""
    for token in tokens:
        head = head.removeprefix(token)
    return head


def _without_thinking(tail: str, thought: ThoughtFormat) -> str:
    """The tail with reasoning that the template opened closed empty."""
    if opens_reasoning(tail, thought):
        end = thought.closing_text if thought.final else f"\n\n{thought.close}\n\n"
        return tail.rstrip() + end
    return complete_final(tail, thought)


def _parts(
    folder: Path, render: Callable[[list[dict[str, str]]], str], roles: tuple[str, ...]
) -> list[Any]:
    """The parts of a conversation; the first and the last one are texts."""
    contents = [_NUMBERED.format(number) for number in range(len(roles))]
    messages = [
        {"role": role, "content": content} for role, content in zip(roles, contents, strict=True)
    ]
    try:
        text = render(messages)
    except ValueError as error:
        raise ValueError(
            f"{folder}: the chat template rejects messages of {', '.join(roles)}: {error}"
        ) from None
    for role, content in zip(roles, contents, strict=True):
        if text.count(content) != 1:
            raise ValueError(
                f"{folder}: the chat template changes, drops or repeats messages of {role}"
            )
    parts: list[Any] = []
    # A template may put the system message next to the last one.
    for number in sorted(range(len(roles)), key=lambda number: text.index(contents[number])):
        before, _, text = text.partition(contents[number])
        parts += [before, number]
    return [*parts, text]


def _render_placeholder(
    folder: Path, render: Callable[[list[dict[str, str]]], str], system_prompt: str | None
) -> str:
    """Render the template around the placeholder, with the system message if there is one."""
    user = [{"role": "user", "content": _PLACEHOLDER}]
    try:
        without_system = render(user)
    except ValueError as error:
        raise ValueError(f"{folder}: the chat template fails: {error}") from None
    if system_prompt is None:
        return without_system
    try:
        text = render([{"role": "system", "content": system_prompt}, *user])
    except ValueError as error:
        raise ValueError(
            f"{folder}: the chat template rejects a system message ({error}); remove system_prompt"
        ) from None
    if system_prompt.strip() and text == without_system:
        raise ValueError(
            f"{folder}: the chat template drops the system message; remove system_prompt"
        )
    return text


def _renderer(
    template: Template, variables: dict[str, Any]
) -> Callable[[list[dict[str, str]]], str]:
    """A function that renders messages and raises every failure as a one-line ValueError."""

    def render(messages: list[dict[str, str]]) -> str:
        try:
            return template.render(messages=messages, **variables)
        except Exception as error:  # a template is code and can fail in any way
            raise ValueError(_one_line(error)) from None

    return render


class _Generation(Extension):
    """Accept `{% generation %}`, which marks answers for transformers, and keep its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares a plain set

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _compile(folder: Path, source: str, date: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    # A fixed date keeps prompts the same on every day.
    environment.globals["strftime_now"] = datetime.fromisoformat(date).strftime
    try:
        return environment.from_string(source)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"{folder}: the chat template cannot be parsed: line {error.lineno}: {_one_line(error)}"
        ) from None


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's filter escapes HTML and non-ASCII letters; the one of transformers does not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _template_source(folder: Path, name: str | None) -> str:
    """The source of the template of a name, or of the default one."""
    templates = chat_templates(folder)
    source = templates.get(name or "default")
    if source is None and templates:
        missing = "no default chat template" if name is None else f"no chat template {name!r}"
        raise ValueError(f"{folder}: has {missing}; set chat_template: {' or '.join(templates)}")
    if source is None:
        raise ValueError(
            f"{folder}: has no chat template; set chat_template: false, or use an instruct model"
        )
    return source


def _leading_special_tokens(folder: Path) -> list[str]:
    """Special tokens that the tokenizer adds before every text."""
    encoding = open_tokenizer(folder).encode("a")
    first = encoding.special_tokens_mask.index(0) if 0 in encoding.special_tokens_mask else 0
    return encoding.tokens[:first]
