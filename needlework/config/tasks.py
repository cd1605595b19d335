"""Tasks: their parameters. `module = "x"`: samples are made by needlework/tasks/x.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from needlework.config.base import Percent, Strict, tagged_union


class Task(Strict):
    """Parameters of one task, common ground of them all."""

    module: ClassVar[str]
    metric: ClassVar[Literal["all", "part"]] = "all"
    """The metric of RULER that the task is quoted by."""

    max_new_tokens: int = Field(ge=1, description="tokens an answer may have")


class Passkey(Task):
    """A pass key hidden in repeated filler (Mohtashami and Jaggi, 2023)."""

    module: ClassVar[str] = "passkey"

    type: Literal["passkey"] = "passkey"
    digits: int = Field(5, ge=1, le=20, description="digits of the key")
    max_new_tokens: int = Field(10, ge=1, description="tokens an answer may have")


class Niah(Task):
    """Needles in a haystack, as RULER makes them (Hsieh et al., 2024)."""

    module: ClassVar[str] = "niah"

    type: Literal["niah"] = "niah"
    haystack: Literal["noise", "sentences"] = Field(
        "noise", description="noise: RULER's one paragraph; sentences: wonderwords sentences"
    )
    keys: int = Field(1, ge=1, le=40, description="needles, one of which is asked for")
    key_words: Literal["all", "held_out"] = Field(
        "all", description="held_out: keys of words that the embedded model was not trained on"
    )
    max_new_tokens: int = Field(128, ge=1, description="tokens an answer may have")


class NiahSingle1(Niah):
    """RULER's niah_single_1: one needle in noise."""

    type: Literal["niah_single_1"] = "niah_single_1"


class NiahMultikey1(Niah):
    """RULER's niah_multikey_1: four needles, one asked for, in sentences."""

    type: Literal["niah_multikey_1"] = "niah_multikey_1"
    haystack: Literal["noise", "sentences"] = Field(
        "sentences", description="what hides the needles"
    )
    keys: int = Field(4, ge=1, le=40, description="needles, one of which is asked for")


ExampleLength = Annotated[int, Field(ge=64)]
"""Tokens of a row to train on."""


class PasskeyExamples(Strict):
    """Passkey rows to train on: prompt and answer, keys apart from every evaluation key."""

    module: ClassVar[str] = "passkey"

    type: Literal["passkey"] = "passkey"
    examples: int = Field(2000, ge=1, description="rows")
    length: ExampleLength | Annotated[list[ExampleLength], Field(min_length=1)] = Field(
        1024, description="tokens of prompt, answer and end of text; several lengths take turns"
    )
    digits: list[Annotated[int, Field(ge=1, le=20)]] = Field(
        [4], min_length=1, description="digits of the keys, mixed evenly"
    )
    depths: list[Percent] = Field(
        [0, 25, 50, 75, 100], min_length=1, description="where the key stands, mixed evenly"
    )

    @property
    def lengths(self) -> list[int]:
        """`length` as a list."""
        return [self.length] if isinstance(self.length, int) else self.length


AnyTask = tagged_union(Task)
