"""Parameters of tasks and of fine-tuning data.

A task is a subclass of Task with a `type` field here, and a module that generates its samples (see
needlework/tasks/generate.py). Fine-tuning data is a subclass of Examples with a `type` field, and a
module whose function `make_examples` generates the rows.
"""

from string import Formatter
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from needlework.config.base import Name, Percent, Strict, Text, tagged_union
from needlework.config.depths import Depths

BUILT_IN_HAYSTACKS = ("noise", "needle", "sentences", "essay")
MAX_NEEDLES = 40
"""RULER has 40 depths, and no two needles share one."""

Metric = Literal["all", "part"]
ValueType = Literal["numbers", "words", "uuids"]
AnswerType = Literal["numbers", "words", "uuids", "text", "choice"]
_DEPTHS = Field(None, description="depths of the needles; null: the experiment's depths")
_HAYSTACK = (
    "noise: one repeated paragraph; needle: other needles; sentences: generated sentences; "
    "essay: haystacks.essay, or generated sentences without it; or a name under haystacks"
)
_PATH = (
    "text file, folder of text files, Parquet/JSON lines/CSV file or folder, folder of a saved "
    "dataset, or owner/name of a hub dataset"
)
_TABLE_PATH = (
    "Parquet/JSON lines/CSV file or folder, folder of a saved dataset, or owner/name of a hub "
    "dataset"
)
_COLUMN = "column with the text, if the source is a table"
_SPLIT = "split, if the dataset has several"
_MAX_NEW_TOKENS = "token budget of the answer"


class Haystack(Strict):
    """A text of yours to hide needles in; it is split into sentences."""

    path: str = Field(min_length=1, description=_PATH)
    column: str = Field("text", description=_COLUMN)
    split: str = Field("train", description=_SPLIT)


class Task(Strict):
    """Parameters that all tasks share."""

    module: ClassVar[str]
    """The module that generates the samples; see needlework/tasks/generate.py."""
    has_depths: ClassVar[bool] = True
    """Whether each answer has one depth, so that the task has a heatmap."""
    generated: ClassVar[bool] = True
    """Whether samples are generated, or exist already and all have to be read to be checked."""

    max_new_tokens: int = Field(ge=1, description=_MAX_NEW_TOKENS)

    @property
    def type_name(self) -> str:
        """The `type` that selects this task in the experiment file."""
        return type(self).model_fields["type"].get_default()

    @property
    def metric(self) -> Metric:
        """RULER's metric for the task: all references must be found, or any of them."""
        return "all"

    @property
    def answer_type(self) -> AnswerType:
        """The kind of values in the answers, for the exact metric."""
        return "numbers"

    @property
    def haystack_name(self) -> str | None:
        """The haystack that the task hides its needles in; None: it has none."""
        return None

    @property
    def files(self) -> list[str]:
        """Files that the samples are made from; {length} in a path stands for the length."""
        return []


class DepthTask(Task):
    """A task with needles at depths."""

    depths: Depths | None = _DEPTHS


class Passkey(DepthTask):
    """A pass key in repeated filler (Mohtashami and Jaggi, 2023)."""

    module: ClassVar[str] = "needlework.tasks.passkey"

    type: Literal["passkey"] = "passkey"
    digits: int = Field(5, ge=1, le=20, description="number of digits of the key")
    shots: int = Field(
        0, ge=0, le=3, description="worked examples with other keys before the prompt"
    )
    filler: Text | None = Field(None, description="text to repeat; null: the grass is green, ...")
    max_new_tokens: int = Field(10, ge=1, description=_MAX_NEW_TOKENS)


class NiahTemplates(Strict):
    """The sentences of a needle-in-a-haystack prompt, for other languages."""

    needle: Text = Field(description="sentence to hide, with {key} and {value}")
    intro: Text = Field(description="first line of the prompt")
    question: Text = Field(description="question, with {query} for the keys asked for")
    answer_prefix: Text = Field(description="beginning of the answer; may have {query}")

    @model_validator(mode="after")
    def _check_placeholders(self) -> Self:
        needed = {"needle": {"key", "value"}, "intro": set(), "question": {"query"}}
        for name, text in self:
            try:
                found = {field for _, field, _, _ in Formatter().parse(text) if field is not None}
            except ValueError as error:
                raise ValueError(f"{name}: {error}; write {{{{ for a brace") from None
            for field in sorted(needed.get(name, set()) - found):
                raise ValueError(f"{name} has no {{{field}}}; write it where it belongs")
            for field in sorted(found - needed.get(name, {"query"})):
                raise ValueError(f"{name} has the unknown {{{field}}}; remove it")
        return self


class NiahTask(DepthTask):
    """A needle-in-a-haystack task of RULER (Hsieh et al., 2024)."""

    module: ClassVar[str] = "needlework.tasks.niah"

    haystack: Name = Field("noise", description=_HAYSTACK)
    answers_in_haystack: Literal["refuse", "warn"] = Field(
        "warn", description="what to do if an answer occurs in the context outside its needle"
    )
    key_type: ValueType = Field("words", description="kind of keys; words: adjective-noun")
    value_type: ValueType = Field("numbers", description="kind of values")
    digits: int = Field(7, ge=1, le=20, description="number of digits of numeric keys and values")
    keys: int = Field(1, ge=1, description="keys in the haystack")
    values: int = Field(1, ge=1, description="values per key; each is a needle")
    queries: int = Field(1, ge=1, description="keys that the question asks for")
    key_words: Literal["all", "held_out"] = Field(
        "all", description="held_out: only words that the embedded model was not trained on"
    )
    templates: NiahTemplates | None = Field(
        None, description="sentences of your own, in any language; null: RULER's"
    )
    max_new_tokens: int = Field(128, ge=1, description=_MAX_NEW_TOKENS)

    @property
    def haystack_name(self) -> str:
        return self.haystack

    @property
    def answer_type(self) -> ValueType:
        return self.value_type

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        if self.keys * self.values > MAX_NEEDLES:
            needles = self.keys * self.values
            raise ValueError(f"keys x values is {needles} needles; write at most {MAX_NEEDLES}")
        if self.queries > self.keys:
            raise ValueError(f"queries is above keys; write at most {self.keys}, or more keys")
        return self


class Niah(NiahTask):
    """Needles in a haystack, with any of RULER's parameters (Hsieh et al., 2024)."""

    type: Literal["niah"] = "niah"


class NiahSingle1(NiahTask):
    """RULER's niah_single_1: a number in noise."""

    type: Literal["niah_single_1"] = "niah_single_1"


class NiahSingle2(NiahTask):
    """RULER's niah_single_2: a number in an essay."""

    type: Literal["niah_single_2"] = "niah_single_2"
    haystack: Name = Field("essay", description=_HAYSTACK)


class NiahSingle3(NiahTask):
    """RULER's niah_single_3: a uuid in an essay."""

    type: Literal["niah_single_3"] = "niah_single_3"
    haystack: Name = Field("essay", description=_HAYSTACK)
    value_type: ValueType = Field("uuids", description="kind of values")


class NiahMultikey1(NiahTask):
    """RULER's niah_multikey_1: four needles in an essay, one is queried."""

    type: Literal["niah_multikey_1"] = "niah_multikey_1"
    haystack: Name = Field("essay", description=_HAYSTACK)
    keys: int = Field(4, ge=1, description="keys in the haystack")


class NiahMultikey2(NiahTask):
    """RULER's niah_multikey_2: a haystack of needles, one is queried."""

    type: Literal["niah_multikey_2"] = "niah_multikey_2"
    haystack: Name = Field("needle", description=_HAYSTACK)


class NiahMultikey3(NiahTask):
    """RULER's niah_multikey_3: a haystack of needles made of uuids, one is queried."""

    type: Literal["niah_multikey_3"] = "niah_multikey_3"
    haystack: Name = Field("needle", description=_HAYSTACK)
    key_type: ValueType = Field("uuids", description="kind of keys")
    value_type: ValueType = Field("uuids", description="kind of values")


class NiahMultivalue(NiahTask):
    """RULER's niah_multivalue: four values of one key in an essay, all are queried."""

    type: Literal["niah_multivalue"] = "niah_multivalue"
    haystack: Name = Field("essay", description=_HAYSTACK)
    values: int = Field(4, ge=1, description="values per key; each is a needle")


class NiahMultiquery(NiahTask):
    """RULER's niah_multiquery: four keys in an essay, all are queried."""

    type: Literal["niah_multiquery"] = "niah_multiquery"
    haystack: Name = Field("essay", description=_HAYSTACK)
    keys: int = Field(4, ge=1, description="keys in the haystack")
    queries: int = Field(4, ge=1, description="keys that the question asks for")


class FreeNeedle(Strict):
    """A sentence of yours to hide, and the part of it that the answer must contain."""

    text: Text = Field(description="sentence to hide")
    answer: Text = Field(description="what the answer must contain")


class Needles(DepthTask):
    """Your own needles and a question about all of them."""

    module: ClassVar[str] = "needlework.tasks.needles"

    type: Literal["needles"] = "needles"
    haystack: Name = Field("essay", description=_HAYSTACK)
    needles: list[FreeNeedle] = Field(
        min_length=1, max_length=MAX_NEEDLES, description="needles to hide and to look for"
    )
    question: Text = Field(description="question after the haystack")
    intro: Text = Field(
        "Read the following text. I will ask you about it afterwards.",
        description="instruction before the haystack",
    )
    answer_prefix: str = Field("Answer:", description="start of the answer")
    answers_in_haystack: Literal["refuse", "warn"] = Field(
        "warn", description="what to do if an answer occurs in the context outside its needle"
    )
    max_new_tokens: int = Field(64, ge=1, description=_MAX_NEW_TOKENS)

    @property
    def haystack_name(self) -> str:
        return self.haystack

    @property
    def answer_type(self) -> Literal["text"]:
        return "text"


class VariableTracking(DepthTask):
    """RULER's vt: find the variables that hold a value, through chains of assignments."""

    module: ClassVar[str] = "needlework.tasks.vt"

    type: Literal["vt"] = "vt"
    haystack: Name = Field("noise", description=_HAYSTACK)
    chains: int = Field(1, ge=1, description="chains of assignments; the first is queried")
    hops: int = Field(4, ge=1, description="assignments of a chain after its first")
    max_new_tokens: int = Field(30, ge=1, description=_MAX_NEW_TOKENS)

    @property
    def haystack_name(self) -> str:
        return self.haystack

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"

    @model_validator(mode="after")
    def _check_counts(self) -> Self:
        needles = self.chains * (self.hops + 1)
        if needles > MAX_NEEDLES:
            raise ValueError(
                f"chains x (hops + 1) is {needles} assignments; write at most {MAX_NEEDLES}"
            )
        return self


class CommonWords(Task):
    """RULER's cwe: find the most common words of a numbered list."""

    module: ClassVar[str] = "needlework.tasks.cwe"
    has_depths: ClassVar[bool] = False

    type: Literal["cwe"] = "cwe"
    common_words: int = Field(10, ge=1, le=100, description="common words to name")
    common_repeats: int | None = Field(
        None, ge=2, description="repeats of each common word; null: 30, below 4096 tokens 6"
    )
    other_repeats: int | None = Field(
        None, ge=1, description="repeats of each other word; null: 3, below 4096 tokens 1"
    )
    max_new_tokens: int = Field(120, ge=1, description=_MAX_NEW_TOKENS)

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"

    @model_validator(mode="after")
    def _check_repeats(self) -> Self:
        common, other = self.common_repeats, self.other_repeats
        if (common is None) != (other is None):
            raise ValueError("write both common_repeats and other_repeats, or neither")
        if common is not None and other is not None and common <= other:
            raise ValueError(
                f"common_repeats is not above other_repeats; write at least {other + 1}"
            )
        return self


class FrequentWords(Task):
    """RULER's fwe: find the three most frequent coded words, whose counts follow Zipf's law."""

    module: ClassVar[str] = "needlework.tasks.fwe"
    has_depths: ClassVar[bool] = False

    type: Literal["fwe"] = "fwe"
    alpha: float = Field(
        2.0, gt=1, le=10, description="Zipf's exponent: rank k appears as often as k^-alpha"
    )
    letters: int = Field(6, ge=3, le=20, description="letters of a coded word")
    vocabulary: int | None = Field(
        None, ge=5, description="number of coded words; null: a fiftieth of the length"
    )
    max_new_tokens: int = Field(50, ge=1, description=_MAX_NEW_TOKENS)

    @property
    def answer_type(self) -> Literal["words"]:
        return "words"


class QuestionAnsweringTask(Task):
    """A question about one or two paragraphs among many."""

    module: ClassVar[str] = "needlework.tasks.qa"

    path: str = Field(
        min_length=1, description="question set: the JSON file that its authors publish"
    )
    format: Literal["squad", "hotpotqa"] = Field("squad", description="format of the file")
    max_new_tokens: int = Field(32, ge=1, description=_MAX_NEW_TOKENS)

    @property
    def metric(self) -> Metric:
        return "part"

    @property
    def answer_type(self) -> Literal["text"]:
        return "text"

    @property
    def files(self) -> list[str]:
        return [self.path]


class QuestionAnswering(QuestionAnsweringTask):
    """A question about one or two paragraphs among many, like RULER's qa_1 and qa_2."""

    type: Literal["qa"] = "qa"


class Qa1(QuestionAnsweringTask):
    """RULER's qa_1: SQuAD, with other paragraphs around the gold one."""

    type: Literal["qa_1"] = "qa_1"
    path: str = Field(min_length=1, description="SQuAD's dev-v2.0.json")


class Qa2(QuestionAnsweringTask):
    """RULER's qa_2: HotpotQA, with other paragraphs around a question's ten."""

    type: Literal["qa_2"] = "qa_2"
    path: str = Field(min_length=1, description="HotpotQA's hotpot_dev_distractor_v1.json")
    format: Literal["squad", "hotpotqa"] = Field("hotpotqa", description="format of the file")


class RulerJsonl(Task):
    """Existing samples in RULER's JSON lines; those of a length are used unchanged."""

    module: ClassVar[str] = "needlework.tasks.ruler_jsonl"
    has_depths: ClassVar[bool] = False
    generated: ClassVar[bool] = False

    type: Literal["ruler_jsonl"] = "ruler_jsonl"
    path: str = Field(
        min_length=1, description="the file; {length} in it stands for the length in tokens"
    )
    value_type: AnswerType = Field("text", description="kind of answers; choice: a letter")
    match: Metric = Field(
        "all", description="what a right answer contains: all of the outputs, or one of them"
    )
    max_new_tokens: int = Field(128, ge=1, description=_MAX_NEW_TOKENS)

    @property
    def metric(self) -> Metric:
        return self.match

    @property
    def answer_type(self) -> AnswerType:
        return self.value_type

    @property
    def files(self) -> list[str]:
        return [self.path]


ExampleLength = Annotated[int, Field(ge=64)]
"""Tokens of a training row."""


class Examples(Strict):
    """Parameters that all kinds of training rows share."""

    module: ClassVar[str]
    """The module that makes the rows, in its function `make_examples`."""
    has_answers: ClassVar[bool] = True
    """Whether rows have a prompt and an answer; other rows are plain text."""

    examples: int | None = Field(None, ge=1, description="number of rows")
    length: ExampleLength | Annotated[list[ExampleLength], Field(min_length=1)] = Field(
        1024, description="tokens of prompt, answer and end-of-text; several lengths alternate"
    )

    @property
    def task_name(self) -> str | None:
        """The task of the experiment that makes the rows; None: no task does."""
        return None

    @property
    def source_path(self) -> str | None:
        """The user's file, folder or dataset that rows are read from; None: they are generated."""
        return None

    @property
    def lengths(self) -> list[int]:
        """`length` as a list."""
        return [self.length] if isinstance(self.length, int) else self.length


class FixedCountExamples(Examples):
    """Training rows of a fixed number."""

    examples: int = Field(2000, ge=1, description="number of rows")


class PasskeyExamples(FixedCountExamples):
    """Passkey training rows: prompt and answer. Their keys are never evaluation keys."""

    module: ClassVar[str] = "needlework.finetune_data.passkey"

    type: Literal["passkey"] = "passkey"
    digits: list[Annotated[int, Field(ge=1, le=20)]] = Field(
        [4], min_length=1, description="numbers of digits of the keys, equally frequent"
    )
    depths: list[Percent] = Field(
        [0, 25, 50, 75, 100], min_length=1, description="depths of the key, equally frequent"
    )


class TaskExamples(FixedCountExamples):
    """Training rows of one of the file's tasks; the length has room for the longest answer.

    They use separate random streams; their pass keys are never evaluation keys.
    """

    module: ClassVar[str] = "needlework.finetune_data.task"

    type: Literal["task"] = "task"
    task: Name = Field(description="a name under tasks")

    @property
    def task_name(self) -> str:
        return self.task


class RowExamples(Examples):
    """Your own training rows: the columns prompt and answer of a table, unchanged.

    An answer directly follows its prompt: start it with a space if your tokenizer needs one.
    """

    module: ClassVar[str] = "needlework.finetune_data.rows"

    type: Literal["rows"] = "rows"
    path: str = Field(min_length=1, description=_TABLE_PATH)
    prompt_column: str = Field("prompt", description="column with the prompts")
    answer_column: str = Field("answer", description="column with the answers")
    split: str = Field("train", description=_SPLIT)
    examples: int | None = Field(
        None, ge=1, description="number of rows, from the first; null: all"
    )
    length: ExampleLength = Field(
        1024,
        description="maximum tokens of prompt, answer and end-of-text; longer rows are an error",
    )

    @property
    def source_path(self) -> str:
        return self.path


class TextExamples(FixedCountExamples):
    """Your own text to train on, with loss on every token.

    Documents are tokenized one after the other, each ends with the end-of-text token, and the
    token stream is cut into rows without gaps.
    """

    module: ClassVar[str] = "needlework.finetune_data.text"
    has_answers: ClassVar[bool] = False

    type: Literal["text"] = "text"
    path: str = Field(min_length=1, description=_PATH)
    column: str = Field("text", description=_COLUMN)
    split: str = Field("train", description=_SPLIT)
    length: ExampleLength | Annotated[list[ExampleLength], Field(min_length=1)] = Field(
        1024, description="tokens of a row; several lengths alternate"
    )

    @property
    def source_path(self) -> str:
        return self.path


class RecallExamples(FixedCountExamples):
    """Generated text that states numbers and asks for them again, with loss on every token.

    The text of streams without a path; each row is an independent text from separate random
    streams. Mixed with rows of a task, it keeps a model able to continue text.
    """

    module: ClassVar[str] = "needlework.finetune_data.recall"
    has_answers: ClassVar[bool] = False

    type: Literal["recall"] = "recall"
    recall_fraction: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="fraction of turns that ask for an earlier number of the row and answer",
    )


AnyTask = tagged_union(Task)
AnyExamples = tagged_union(Examples)
