"""Seeds: every sample draws from its own random stream, independent of all others."""

import hashlib
import json
from typing import Any


def stream_seed(*parts: Any) -> int:
    """Hash JSON values into a 63-bit seed, the same on every machine."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def hash_fraction(text: str) -> float:
    """Map `text` to [0, 1) by its hash, to split strings into fixed parts."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
