"""Parameters of tasks and of fine-tuning data; `module` is what makes the samples or rows."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.base import Name, Percent, Strict, Text, tagged_union
from needlework.config.depths import Depths

BUILT_IN_HAYSTACKS = ("noise", "needle", "sentences", "essay")
MOST_NEEDLES = 40
"""RULER has 40 depths, no two needles at the same one."""

ValueType = Literal["numbers", "words", "uuids"]
_DEPTHS = Field(None, description="where needles stand; null: the experiment's depths")
_HAYSTACK = (
    "noise: one paragraph again and again; needle: other needles; sentences: generated "
    "sentences; essay: haystacks.essay, or sentences where there is none; or a name under haystacks"
)


class Haystack(Strict):
    """Text of yours that needles are hidden in, cut into sentences."""

    path: str = Field(
        min_length=1,
        description="text file, folder of text files, Parquet/JSON lines/CSV file or folder, "
        "folder of a saved dataset, or a hub's owner/name",
    )
    column: str = Field("text", description="the column with the text, in a table")
    split: str = Field("train", description="the split, in a dataset that has several")


class Task(Strict):
    """Parameters of one task, common ground of them all."""

    module: ClassVar[str]
    metric: ClassVar[Literal["all", "part"]] = "all"
    """The metric of RULER that the task is quoted by."""
    has_depths: ClassVar[bool] = True
    """Whether an answer stands at one depth: then there is a heatmap."""

    max_new_tokens: int = Field(ge=1, description="tokens an answer may have")

    @property
    def answer_type(self) -> Literal["numbers", "words", "uuids", "text"]:
        """What the answers are, for the exact metric."""
        return "numbers"

    @property
    def files(self) -> list[str]:
        """Files that the samples are made from; {length} in one stands for the length."""
        return []


class DepthTask(Task):
    """A task whose needles stand at depths."""

    depths: Depths | None = _DEPTHS


class Passkey(DepthTask):
    """A pass key hidden in repeated filler (Mohtashami and Jaggi, 2023)."""

    module: ClassVar[str] = "needlework.tasks.passkey"

    type: Literal["passkey"] = "passkey"
    digits: int = Field(5, ge=1, le=20, description="digits of the key")
    shots: int = Field(0, ge=0, le=3, description="worked examples before it, with other keys")
    filler: Text | None = Field(None, description="text to repeat; null: the grass is green, ...")
    max_new_tokens: int = Field(10, ge=1, description="tokens an answer may have")


class Niah(DepthTask):
    """Needles in a haystack, as RULER makes them (Hsieh et al., 2024)."""

    module: ClassVar[str] = "needlework.tasks.niah"

    type: Literal["niah"] = "niah"
    haystack: Name = Field("noise", description=_HAYSTACK)
    key_type: ValueType = Field("words", description="what keys are: adjective-noun, ...")
    value_type: ValueType = Field("numbers", description="what values are")
    digits: int = Field(7, ge=1, le=20, description="digits of keys and values that are numbers")
    keys: int = Field(1, ge=1, description="keys in the haystack")
    values: int = Field(1, ge=1, description="values of each key, a needle each")
    queries: int = Field(1, ge=1, description="keys that are asked for")
    key_words: Literal["all", "held_out"] = Field(
        "all", description="held_out: keys of words that the embedded model was not trained on"
    )
    max_new_tokens: int = Field(128, ge=1, description="tokens an answer may have")

    @property
    def answer_type(self) -> ValueType:
        return self.value_type

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if self.keys * self.values > MOST_NEEDLES:
            needles = self.keys * self.values
            raise ValueError(f"keys x values is {needles} needles; write at most {MOST_NEEDLES}")
        if self.queries > self.keys:
            raise ValueError(f"queries is above keys; write at most {self.keys}, or more keys")
        return self


class NiahSingle1(Niah):
    """RULER's niah_single_1: a number in noise."""

    type: Literal["niah_single_1"] = "niah_single_1"


class NiahSingle2(Niah):
    """RULER's niah_single_2: a number in an essay."""

    type: Literal["niah_single_2"] = "niah_single_2"
    haystack: Name = Field("essay", description=_HAYSTACK)


class NiahSingle3(Niah):
    """RULER's niah_single_3: a uuid in an essay."""

    type: Literal["niah_single_3"] = "niah_single_3"
    haystack: Name = Field("essay", description=_HAYSTACK)
    value_type: ValueType = Field("uuids", description="what values are")


class NiahMultikey1(Niah):
    """RULER's niah_multikey_1: four needles in an essay, one asked for."""

    type: Literal["niah_multikey_1"] = "niah_multikey_1"
    haystack: Name = Field("essay", description=_HAYSTACK)
    keys: int = Field(4, ge=1, description="keys in the haystack")


class NiahMultikey2(Niah):
    """RULER's niah_multikey_2: a haystack of needles, one asked for."""

    type: Literal["niah_multikey_2"] = "niah_multikey_2"
    haystack: Name = Field("needle", description=_HAYSTACK)


class NiahMultikey3(Niah):
    """RULER's niah_multikey_3: a haystack of needles with uuids, one asked for."""

    type: Literal["niah_multikey_3"] = "niah_multikey_3"
    haystack: Name = Field("needle", description=_HAYSTACK)
    key_type: ValueType = Field("uuids", description="what keys are")
    value_type: ValueType = Field("uuids", description="what values are")


class NiahMultivalue(Niah):
    """RULER's niah_multivalue: four values of one key in an essay, all asked for."""

    type: Literal["niah_multivalue"] = "niah_multivalue"
    haystack: Name = Field("essay", description=_HAYSTACK)
    values: int = Field(4, ge=1, description="values of each key, a needle each")


class NiahMultiquery(Niah):
    """RULER's niah_multiquery: four keys in an essay, all asked for."""

    type: Literal["niah_multiquery"] = "niah_multiquery"
    haystack: Name = Field("essay", description=_HAYSTACK)
    keys: int = Field(4, ge=1, description="keys in the haystack")
    queries: int = Field(4, ge=1, description="keys that are asked for")


class FreeNeedle(Strict):
    """A sentence of yours to hide, and what of it an answer must say."""

    text: Text = Field(description="the sentence to hide")
    answer: Text = Field(description="what an answer must hold")


class Needles(DepthTask):
    """Needles of your own, all asked for by a question of your own."""

    module: ClassVar[str] = "needlework.tasks.needles"

    type: Literal["needles"] = "needles"
    haystack: Name = Field("essay", description=_HAYSTACK)
    needles: list[FreeNeedle] = Field(
        min_length=1, max_length=MOST_NEEDLES, description="what is hidden, and looked for"
    )
    question: Text = Field(description="asked after the haystack")
    intro: Text = Field(
        "Read the following text. I will ask you about it afterwards.",
        description="said before the haystack",
    )
    answer_prefix: str = Field("Answer:", description="how the answer begins")
    max_new_tokens: int = Field(64, ge=1, description="tokens an answer may have")

    @property
    def answer_type(self) -> Literal["text"]:
        return "text"


class VariableTracking(DepthTask):
    """RULER's vt: which variables come to hold a value, through chains of assignments."""

    module: ClassVar[str] = "needlework.tasks.vt"

    type: Literal["vt"] = "vt"
    haystack: Name = Field("noise", description=_HAYSTACK)
    chains: int = Field(1, ge=1, description="chains of assignments; the first is asked for")
    hops: int = Field(4, ge=1, description="assignments in a chain after the first")
    max_new_tokens: int = Field(30, ge=1, description="tokens an answer may have")

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        needles = self.chains * (self.hops + 1)
        if needles > MOST_NEEDLES:
            raise ValueError(
                f"chains x (hops + 1) is {needles} assignments; write at most {MOST_NEEDLES}"
            )
        return self


class CommonWords(Task):
    """RULER's cwe: the words that stand most often in a numbered list."""

    module: ClassVar[str] = "needlework.tasks.cwe"
    has_depths: ClassVar[bool] = False

    type: Literal["cwe"] = "cwe"
    common_words: int = Field(10, ge=1, le=100, description="words to name")
    common_repeats: int | None = Field(
        None, ge=2, description="times each of them stands there; null: 30, below 4096 tokens 6"
    )
    other_repeats: int | None = Field(
        None, ge=1, description="times each other word does; null: 3, below 4096 tokens 1"
    )
    max_new_tokens: int = Field(120, ge=1, description="tokens an answer may have")

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"

    @model_validator(mode="after")
    def _common_is_common(self) -> Self:
        common, other = self.common_repeats, self.other_repeats
        if (common is None) != (other is None):
            raise ValueError("write both common_repeats and other_repeats, or neither")
        if common is not None and common <= other:
            raise ValueError(
                f"common_repeats is not above other_repeats; write at least {other + 1}"
            )
        return self


class FrequentWords(Task):
    """RULER's fwe: the three most frequent coded words, after the dots, of a Zipf law."""

    module: ClassVar[str] = "needlework.tasks.fwe"
    has_depths: ClassVar[bool] = False

    type: Literal["fwe"] = "fwe"
    alpha: float = Field(2.0, gt=1, le=10, description="Zipf's exponent: rank k goes as k^-alpha")
    letters: int = Field(6, ge=3, le=20, description="letters of a coded word")
    vocabulary: int | None = Field(
        None, ge=5, description="coded words to draw from; null: a fiftieth of the length"
    )
    max_new_tokens: int = Field(50, ge=1, description="tokens an answer may have")

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"


class QuestionAnswering(Task):
    """A question on one paragraph (or two) among many, as RULER's qa_1 and qa_2."""

    module: ClassVar[str] = "needlework.tasks.qa"
    metric: ClassVar[Literal["all", "part"]] = "part"

    type: Literal["qa"] = "qa"
    path: str = Field(min_length=1, description="the set: a JSON file as its authors publish it")
    format: Literal["squad", "hotpotqa"] = Field("squad", description="whose form it has")
    max_new_tokens: int = Field(32, ge=1, description="tokens an answer may have")

    @property
    def answer_type(self) -> Literal["text"]:
        return "text"

    @property
    def files(self) -> list[str]:
        return [self.path]


class Qa1(QuestionAnswering):
    """RULER's qa_1: SQuAD, the gold paragraph among others."""

    type: Literal["qa_1"] = "qa_1"
    path: str = Field(min_length=1, description="SQuAD's dev-v2.0.json")


class Qa2(QuestionAnswering):
    """RULER's qa_2: HotpotQA, a question's ten paragraphs among others."""

    type: Literal["qa_2"] = "qa_2"
    path: str = Field(min_length=1, description="HotpotQA's hotpot_dev_distractor_v1.json")
    format: Literal["squad", "hotpotqa"] = Field("hotpotqa", description="whose form it has")


class RulerJsonl(Task):
    """Samples in RULER's JSON lines, made elsewhere; those of a length are taken as they are."""

    module: ClassVar[str] = "needlework.tasks.ruler_jsonl"
    has_depths: ClassVar[bool] = False

    type: Literal["ruler_jsonl"] = "ruler_jsonl"
    path: str = Field(
        min_length=1, description="the file; {length} in it stands for the length in tokens"
    )
    value_type: Literal["numbers", "words", "uuids", "text"] = Field(
        "text", description="what answers are, for the exact metric"
    )
    match: Literal["all", "part"] = Field(
        "all", description="what an answer must hold: all of the outputs, or one of them"
    )
    max_new_tokens: int = Field(128, ge=1, description="tokens an answer may have")

    @property
    def metric(self) -> Literal["all", "part"]:
        return self.match

    @property
    def answer_type(self) -> Literal["numbers", "words", "uuids", "text"]:
        return self.value_type

    @property
    def files(self) -> list[str]:
        return [self.path]


ExampleLength = Annotated[int, Field(ge=64)]
"""Tokens of a row to train on."""


class Examples(Strict):
    """Rows to train on: prompt and answer, from random streams apart from every evaluation's."""

    module: ClassVar[str]
    has_answers: ClassVar[bool] = True

    examples: int = Field(2000, ge=1, description="rows")
    length: ExampleLength | Annotated[list[ExampleLength], Field(min_length=1)] = Field(
        1024, description="tokens of prompt, answer and end of text; several lengths take turns"
    )

    @property
    def lengths(self) -> list[int]:
        """`length` as a list."""
        return [self.length] if isinstance(self.length, int) else self.length


class PasskeyExamples(Examples):
    """Passkey rows to train on: prompt and answer, keys apart from every evaluation key."""

    module: ClassVar[str] = "needlework.finetune_data.passkey"

    type: Literal["passkey"] = "passkey"
    digits: list[Annotated[int, Field(ge=1, le=20)]] = Field(
        [4], min_length=1, description="digits of the keys, mixed evenly"
    )
    depths: list[Percent] = Field(
        [0, 25, 50, 75, 100], min_length=1, description="where the key stands, mixed evenly"
    )


class TaskExamples(Examples):
    """Rows of a task of the file to train on; within `length` there is room for its longest answer.

    They are drawn from random streams of their own; pass keys are none that is evaluated.
    """

    module: ClassVar[str] = "needlework.finetune_data.task"

    type: Literal["task"] = "task"
    task: Name = Field(description="a name under tasks")


class RowExamples(Examples):
    """Rows of your own to train on: two columns of a table, prompt and answer, as they are.

    An answer follows its prompt at once: begin it with a space where your tokenizer wants one.
    """

    module: ClassVar[str] = "needlework.finetune_data.rows"

    type: Literal["rows"] = "rows"
    path: str = Field(
        min_length=1,
        description="Parquet/JSON lines/CSV file or folder, folder of a saved dataset, or a hub's "
        "owner/name",
    )
    prompt_column: str = Field("prompt", description="the column with the prompts")
    answer_column: str = Field("answer", description="the column with the answers")
    split: str = Field("train", description="the split, in a dataset that has several")
    examples: int | None = Field(None, ge=1, description="rows, the first ones; null: all")
    length: ExampleLength = Field(
        1024, description="most tokens of prompt, answer and end of text; longer rows are an error"
    )


class TextExamples(Examples):
    """Text of yours to train on, the loss on every token.

    Documents are tokenized one after the other, each ended by the end of text, and the whole is cut
    into rows with nothing left over between them.
    """

    module: ClassVar[str] = "needlework.finetune_data.text"
    has_answers: ClassVar[bool] = False

    type: Literal["text"] = "text"
    path: str = Field(
        min_length=1,
        description="text file, folder of text files, Parquet/JSON lines/CSV file or folder, "
        "folder of a saved dataset, or a hub's owner/name",
    )
    column: str = Field("text", description="the column with the text, in a table")
    split: str = Field("train", description="the split, in a dataset that has several")
    length: ExampleLength | Annotated[list[ExampleLength], Field(min_length=1)] = Field(
        1024, description="tokens of a row; several lengths take turns"
    )


class RecallExamples(Examples):
    """Generated text to train on, the loss on every token: it tells numbers and asks for them.

    As streams without a path have it; each row is a text of its own, from random streams apart from
    theirs. Beside rows of a task it keeps a model able to read on.
    """

    module: ClassVar[str] = "needlework.finetune_data.recall"
    has_answers: ClassVar[bool] = False

    type: Literal["recall"] = "recall"
    recall_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="share of the turns that ask for a number told before in the row, and answer",
    )


AnyTask = tagged_union(Task)
AnyExamples = tagged_union(Examples)
