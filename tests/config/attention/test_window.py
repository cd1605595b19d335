import pytest

from needlework.config.attention.window import Window


def test_window_has_no_block_count():
    with pytest.raises(ValueError, match="top_k_blocks"):
        Window(top_k_blocks=4)
