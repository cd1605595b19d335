"""What models answer, and how well they foretell texts of any length.

Public names are imported when first asked for.
"""

import importlib

__all__ = ["StreamingEvalConfig", "StreamingEvaluator", "create_streaming_evaluator"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'needlework.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module("needlework.evaluation.streaming.evaluator"), name)
