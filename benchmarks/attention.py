"""Attention systems beside dense attention: the operator by itself, and the whole shipped model."""

from benchmarks.attention_model import infini_table, long_table, turns_table
from benchmarks.attention_operator import operator_table


def attention_table() -> str:
    """All tables, in Markdown."""
    return "\n".join(table() for table in (operator_table, infini_table, turns_table, long_table))
