"""What is wrong with an experiment file, in words: where, and what to write instead."""

import difflib
from collections.abc import Iterable

Problem = tuple[tuple[str | int, ...], str]
"""Where in the file, and what is wrong with the remedy."""


def one_of(names: Iterable[str], wrong: str = "") -> str:
    """`write one of a, b`, the nearest to `wrong` put first as a guess."""
    names = list(names)
    near = difflib.get_close_matches(str(wrong), names, n=1)
    guess = f"did you mean `{near[0]}`? " if near else ""
    return f"{guess}write one of {', '.join(names)}" if names else "there is none to name"
