"""Whether a server's error says that the prompt is longer than its model or its settings allow.

Servers have no common code for it, so the decision uses the status, words, and numbers: a size of
the request that is above a limit.
"""

import re

_STATUS = re.compile(r"^(\d{3}): ")
_TOO_LARGE_STATUS = 413
_RATE_STATUS = 429
_WORDS = re.compile(
    r"context.{0,3}(length|size|window)"
    r"|(prompt|inputs?|messages?|conversation|request)\b.{0,80}"
    r"\btoo (long|large|big|many tokens)"
    r"|too many (input |prompt )?tokens|maximum number of tokens"
    r"|(max_model_len|max_seq_len|max_position_embeddings|n_ctx|max_input_length"
    r"|max_prompt_length|prompt_too_long|request_too_large|(string|prompt|input)_above_max_length)"
    r"|(reduce|shorten) (the |your )?(length of )?(the |your )?(prompt|input|messages)"
    r"|exceed(s|ed|ing)? .{0,40}\btokens|longer than .{0,40}\b(context|tokens)"
    r"|(prompt|input|sequence)( length)? .{0,40}\b(exceed(s|ed)?|(longer|larger|greater) than)\b",
    re.IGNORECASE | re.DOTALL,
)
_SIZE = re.compile(
    r"token|context|prompt|input|sequence|model[_ ]?len|position|length", re.IGNORECASE
)
_PROMPT = re.compile(r"context|prompt|input|sequence|messages|total|length", re.IGNORECASE)
_LIMIT = re.compile(
    r"max|limit|exceed|longer|larger|greater|more than|at most|up to|\btoo\b|\bfits?\b|support"
    r"|allow|less than|must be|over\b|beyond|[<>≤≥]|only",
    re.IGNORECASE,
)
_RATE = re.compile(r"per[ -]?(second|minute|min|hour|day)|\b[TR]P[MD]\b|rate.?limit", re.IGNORECASE)
_COMPLETION = re.compile(r"max_(completion_|new_|output_)?tokens|(completion|output) tokens")
_NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:[,_']\d{3})+(?![\w,])|(?<![\w.])\d+(?![\w])(?!\.\d)")


def is_too_long(reason: str) -> bool:
    """Whether the reason of a refused request, `status: message`, is the prompt's length."""
    match = _STATUS.match(reason)
    status = int(match[1]) if match else None
    message = reason[match.end() :] if match else reason
    if status == _TOO_LARGE_STATUS:
        return True
    if status == _RATE_STATUS or _RATE.search(message):
        # A request above the whole budget of a minute never succeeds; others only have to wait.
        return bool(re.search(r"(request|prompt|input)\b.{0,20}\btoo (long|large)", message, re.I))
    if _COMPLETION.search(message) and not _PROMPT.search(_COMPLETION.sub("", message)):
        return False
    return bool(_WORDS.search(message)) or (
        bool(_SIZE.search(message) and _LIMIT.search(message)) and _has_two_sizes(message)
    )


def names_prompt_size(message: str, characters: int, new_tokens: int) -> bool:
    """Whether the numbers of a message, in any words, are a smaller limit and the prompt's size.

    Args:
        message: the server's error.
        characters: length of the prompt.
        new_tokens: new tokens that the request allows; a number equal to it is no limit.
    """
    sizes = {n for n in _numbers(message) if n >= 128 and n != new_tokens}
    plausible = {n for n in sizes if characters / 8 <= n <= 2 * characters + new_tokens}
    return bool(plausible) and min(sizes) < max(plausible)


def _has_two_sizes(message: str) -> bool:
    """Whether there are two different numbers, of which the larger may be a number of tokens."""
    numbers = set(_numbers(message))
    return len(numbers) > 1 and max(numbers) >= 128


def _numbers(message: str) -> list[int]:
    return [int(re.sub(r"\D", "", number)) for number in _NUMBER.findall(message)]
