"""Seed streams: each sample draws from one of its own, whatever else is generated."""

import hashlib
import json
from typing import Any


def stream_seed(*parts: Any) -> int:
    """A 63-bit seed told by `parts` alone (JSON values): the same on any machine, in any order."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def share(text: str) -> float:
    """Where `text` falls in [0, 1) by its hash: splits strings into lasting parts."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
