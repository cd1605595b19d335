"""How a model marks its reasoning."""

from pydantic import Field

from needlework.config.base import Strict


class ThoughtFormat(Strict):
    """Tags around the reasoning that a model writes before its answer."""

    open: str = Field(min_length=1, description="text that opens the reasoning")
    close: str = Field(min_length=1, description="text that closes it")
    final: str = Field(
        "", description="text that opens the answer after it; empty: the answer follows at once"
    )

    @property
    def closing_text(self) -> str:
        """Closes reasoning that has used up its token budget."""
        return f"{self.close}{self.final}" if self.final else f"\n{self.close}\n\n"
