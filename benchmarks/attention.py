"""Benchmark attention systems against dense attention: the operator, and the embedded model."""

from benchmarks.attention_model import infini_table, long_table, model_table
from benchmarks.attention_operator import operator_table


def attention_table() -> str:
    """All tables as Markdown."""
    return "\n".join(table() for table in (operator_table, infini_table, model_table, long_table))
