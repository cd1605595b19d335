"""Measure how well language models use long contexts.

Public names are imported on first use, so `import needlework` stays fast.
"""

import importlib
from typing import Any

_PUBLIC = {
    "apply": "needlework.attention.apply",
    "Infini": "needlework.config.attention.infini",
    "Oracle": "needlework.config.attention.oracle",
    "Random": "needlework.config.attention.random",
    "Seer": "needlework.config.attention.seer",
    "SketchWalk": "needlework.config.attention.sketchwalk",
    "StreamingEvalConfig": "needlework.evaluation.streaming.evaluator",
    "StreamingEvaluator": "needlework.evaluation.streaming.evaluator",
    "Window": "needlework.config.attention.window",
    "XAttention": "needlework.config.attention.xattention",
    "create_streaming_evaluator": "needlework.evaluation.streaming.evaluator",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'needlework' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
