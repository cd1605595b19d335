"""Tokens that training appends to an answer."""

END_TOKENS = 1
"""The end-of-text token."""
