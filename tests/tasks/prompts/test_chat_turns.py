"""Conversations of several messages, compared with the rendering of transformers."""

import pytest
from tasks.prompts.test_chat import TEMPLATES, save
from transformers import PreTrainedTokenizerFast

from needlework.tasks.prompts.chat import load_chat_frame
from needlework.tasks.prompts.prompt import (
    NO_CHAT_FRAME,
    SERVER_CHAT_FRAME,
    Message,
    Prompt,
)
from needlework.tasks.prompts.token_counter import TokenCounter

TURNS = (
    Message("user", "Write a poem <|eot|> about tapirs."),
    Message("assistant", "No {{ messages }} here.\nA tapir."),
    Message("user", "And one about owls."),
    Message("assistant", "An owl."),
)
LAST = "Give me the first poem."
CASES = [(name, system) for name in TEMPLATES for system in (None, "Be short.")]


def prompt(history, prefix: str = "") -> Prompt:
    return Prompt(LAST, "", prefix, ("x",), (), 0, tuple(history))


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize(("name", "system"), CASES)
def test_conversations_match_transformers(tmp_path, name, system, adds_bos):
    folder = save(tmp_path, TEMPLATES[name], adds_bos=adds_bos)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    own_system = [] if system is None else [Message("system", system)]
    messages = [m._asdict() for m in (*own_system, *TURNS, Message("user", LAST))]
    settings = {"date_string": "03 Feb 2025", "add_generation_prompt": True}
    frame = load_chat_frame(folder, date="2025-02-03")
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **settings)
    except Exception:
        with pytest.raises(ValueError, match="the chat template rejects messages of system, user"):
            frame.text(prompt((*own_system, *TURNS)))
        return
    if name == "deepseek_r1":
        text = text.removesuffix("\n") + "\n\n</think>\n\n"
    if name == "qwen_3":
        text = text.removesuffix("<think>\n\n</think>\n\n") + "<think>\n\n</think>\n\n"
    made = frame.text(prompt((*own_system, *TURNS)))
    bos = "<s>" if adds_bos and text.startswith("<s>") else ""
    assert bos + made == text
    if system is not None:
        with_system = load_chat_frame(folder, date="2025-02-03", system_prompt=system)
        assert with_system.text(prompt(TURNS)) == made
        other = load_chat_frame(folder, date="2025-02-03", system_prompt="Another.")
        assert other.text(prompt((*own_system, *TURNS))) == made


def test_control_tokens_in_any_message_are_text(tmp_path):
    folder = save(tmp_path, TEMPLATES["llama_3"])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    frame = load_chat_frame(folder)
    counter = TokenCounter(tokenizer.backend_tokenizer, frame)
    conversation = prompt(TURNS)
    text = frame.text(conversation)
    spans = [text[start:end] for start, end in counter.control_spans(conversation)]
    expected = {
        token: frame.text(prompt(tuple(m._replace(content="") for m in TURNS))).count(token)
        for token in set(spans)
    }
    assert {token: spans.count(token) for token in expected} == expected
    assert counter.spelled(conversation) == {"<|eot|>": 1}


def test_messages_without_a_template_are_lines_of_a_server_or_refused():
    assert SERVER_CHAT_FRAME.text(prompt(TURNS[:2])) == "\n".join(
        [*(m.content for m in TURNS[:2]), LAST]
    )
    with pytest.raises(ValueError, match="need a chat template"):
        NO_CHAT_FRAME.text(prompt(TURNS))
