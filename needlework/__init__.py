"""needlework measures how well language models use long contexts.

Public names are imported when first asked for, so `import needlework` stays light.
"""

import importlib

_PUBLIC = {
    "apply": "needlework.attention.apply",
    "Infini": "needlework.config.systems",
    "Oracle": "needlework.config.systems",
    "Random": "needlework.config.systems",
    "Seer": "needlework.config.systems",
    "SketchWalk": "needlework.config.systems",
    "StreamingEvalConfig": "needlework.evaluation.streaming",
    "StreamingEvaluator": "needlework.evaluation.streaming",
    "Window": "needlework.config.systems",
    "XAttention": "needlework.config.systems",
    "create_streaming_evaluator": "needlework.evaluation.streaming",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'needlework' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
