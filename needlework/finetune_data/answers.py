"""What training puts behind an answer."""

END_TOKENS = 1
"""Tokens of the end of text that training puts behind an answer."""
