"""Errors of servers: which ones say that the prompt is too long."""

import pytest

from needlework.models.api.overflow import is_too_long, names_prompt_size

TOO_LONG = [
    "400: The decoder prompt (length 10127) is longer than the maximum model length of 8192.",
    "400: This model's maximum context length is 8192 tokens. However, you requested 9000 tokens",
    "400: Input length 9000 exceeds the maximum length 8192",
    "400: Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 "
    "`inputs` tokens and 20 `max_new_tokens`",
    "422: Input validation error: `inputs` must have less than 4095 tokens. Given: 5000",
    "400: Requested token count exceeds the model's maximum context length of 8192 tokens",
    "400: The input (10127 tokens) is longer than the model's context length (8192 tokens).",
    "400: the request exceeds the available context size, try increasing it",
    "400: prompt is too long: 210,000 tokens > 200,000 maximum",
    "400: Prompt length (10127) + max new tokens (64) should not exceed max_seq_len (8192)",
    "400: Please reduce the length of the messages or completion.",
    "400: input is too long for requested model",
    "400: Too many tokens: 10127 of 8192",
    "400: Prompt contains 10127 tokens and 0 draft tokens, too large for model with 8192 maximum",
    "400: 10127 tokens sent, only 8192 supported",
    "500: The number of prompt tokens (10127) plus the number of generated tokens is over 8192",
    "500: Token indices sequence length is longer than the specified maximum (10127 > 8192)",
    "400: max_tokens is too large: 1000. The context has 8192 tokens, your input 8000",
    "413: Payload Too Large",
    "429: Request too large for m on tokens per min (TPM): Limit 30000, Requested 50000",
    "400: No. (context_length_exceeded)",
]
OTHER = [
    "400: n must be 1",
    "400: temperature must be at most 2, got 300",
    "400: max_tokens is too large: 8192. This model supports at most 4096 completion tokens",
    "429: Rate limit reached on tokens per min (TPM): Limit 30000, Used 29000, Requested 9000",
    "500: The server is out of order",
    "503: 512 requests wait; the limit is 256",
    "500: CUDA out of memory: tried to allocate 20480 MiB of 81920 MiB",
    "504: upstream timed out: context deadline exceeded",
    "400: No. (content_filter)",
]


@pytest.mark.parametrize("reason", TOO_LONG)
def test_a_prompt_that_is_too_long_is_recognized(reason: str):
    assert is_too_long(reason)


@pytest.mark.parametrize("reason", OTHER)
def test_other_errors_are_not_about_length(reason: str):
    assert not is_too_long(reason)


def test_numbers_decide_where_words_are_unknown():
    message = "La requête compte 10127 jetons; la capacité est 8192"
    assert names_prompt_size(message, characters=40_000, new_tokens=64)
    assert not names_prompt_size(message, characters=300, new_tokens=64)
    assert not names_prompt_size("Fehler 8192", characters=40_000, new_tokens=64)
