"""Problems in an experiment file: where they are and what to write instead."""

import difflib
from collections.abc import Iterable

Location = tuple[str | int, ...]
"""Keys and list indices that lead to a value in the experiment file."""

Problem = tuple[Location, str]
"""Where the problem is; what is wrong and what to write instead."""


def suggest(names: Iterable[str], wrong: str = "") -> str:
    """`write one of a, b`, preceded by the closest match to `wrong` if there is one."""
    names = list(names)
    close = difflib.get_close_matches(str(wrong), names, n=1)
    guess = f"did you mean `{close[0]}`? " if close else ""
    return f"{guess}write one of {', '.join(names)}" if names else "none is defined"
