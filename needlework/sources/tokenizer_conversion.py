"""The tokenizer.json of checkpoints that have none, made by transformers in its own process."""

import subprocess
import sys
from functools import cache
from pathlib import Path

# Stages that only tokenize do not load torch, which transformers imports.
_CODE = """
import sys
from transformers import AutoTokenizer
sys.stdout.write(AutoTokenizer.from_pretrained(sys.argv[1]).backend_tokenizer.to_str())
"""


@cache
def converted(folder: Path) -> str:
    """The JSON of the tokenizer that transformers makes of other files of a folder.

    Raises:
        ValueError: it cannot; the message ends with its own.
    """
    made = subprocess.run(
        [sys.executable, "-c", _CODE, str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        reason = (made.stderr.strip() or "no reason given").splitlines()[-1]
        raise ValueError(
            f"{folder}: has no tokenizer.json, and transformers cannot make one ({reason}); "
            "install what it needs, or save the tokenizer with save_pretrained"
        )
    return made.stdout
