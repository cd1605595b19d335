"""Evaluation of models: answers to samples, and perplexity of texts of any length.

Public names are imported on first use.
"""

import importlib
from typing import Any

__all__ = ["StreamingEvalConfig", "StreamingEvaluator", "create_streaming_evaluator"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'needlework.evaluation' has no attribute {name!r}")
    return getattr(importlib.import_module("needlework.evaluation.streaming.evaluator"), name)
