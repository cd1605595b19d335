"""RULER's question answering (Hsieh et al., 2024): the answer's paragraph among others."""

from collections.abc import Callable
from random import Random

from needlework.config.tasks.qa import QuestionAnswering, QuestionAnsweringTemplates
from needlework.tasks.context import SampleContext, TaskContext
from needlework.tasks.formats.question_sets import Question, read_hotpotqa, read_squad
from needlework.tasks.haystacks.answers import answer_pattern, occurrences
from needlework.tasks.haystacks.sentence_ends import blank_after
from needlework.tasks.prompts.budget import ContentExhausted
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import TokenCounter
from needlework.tasks.seeds import stream_seed

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output"
    " any other words."
)
ENGLISH = QuestionAnsweringTemplates(
    intro=f"{INSTRUCTION}\n\nThe following are given documents.",
    title="Document {number}:",
    question=f"{INSTRUCTION}\n\nQuestion: {{query}}",
    answer_prefix="Answer:",
)
_MAX_MISFITS = 20
"""Paragraphs that may turn out too long for the remaining room before the search stops."""


class QuestionPrompt:
    """A prompt builder: a question's gold paragraphs among as many others as fit."""

    def __init__(
        self,
        documents: "CountedDocuments",
        question: Question,
        distractors: list[int],
        gold_depths: list[float],
        random: Random,
    ):
        """`distractors` are used in the given order; `gold_depths` belong to `question.gold`."""
        self._documents, self._question, self._distractors = documents, question, distractors
        self._gold_depths = dict(zip(question.gold, gold_depths, strict=True))
        self._shuffle_seed = random.getrandbits(64)
        templates = documents.templates
        self._question_text = templates.question.format(query=question.question)
        self._prefix = blank_after(self._question_text) + templates.answer_prefix.format()
        self._tail = documents.counter.count_tail(self._question_text, self._prefix)

    def build(self, max_tokens: int) -> Prompt:
        documents, gold = self._documents, self._question.gold
        total = documents.head + self._tail
        total += sum(
            documents.title_tokens(i + 1) + documents.tokens(d) for i, d in enumerate(gold)
        )
        chosen: list[int] = []
        misfits = 0
        for document in self._distractors:
            number = len(gold) + len(chosen) + 1
            added = documents.title_tokens(number) + documents.tokens(document)
            if total + added <= max_tokens:
                chosen.append(document)
                total += added
            else:
                misfits += 1
                if misfits == _MAX_MISFITS:
                    break
        all_used = len(chosen) == len(self._distractors)
        if all_used and total + documents.longest_tokens() < max_tokens:
            raise ContentExhausted(total)
        return self._prompt(chosen, total)

    def _prompt(self, distractors: list[int], total: int) -> Prompt:
        documents, gold, depths = self._documents, self._question.gold, self._gold_depths
        order = list(distractors)
        Random(self._shuffle_seed).shuffle(order)
        last = len(order) + len(gold) - 1
        for document in sorted(gold, key=depths.__getitem__):
            order.insert(round(depths[document] / 100 * last), document)
        text, token, character = [documents.intro], documents.head, len(documents.intro)
        places = {}
        for number, document in enumerate(order, start=1):
            places[document] = (number, character, token)
            text.append(f"{documents.title(number)}{documents.texts[document]}\n\n")
            character += len(text[-1])
            token += documents.title_tokens(number) + documents.tokens(document)
        answers = self._question.answers

        def placed(document: int) -> Needle:
            number, character, token = places[document]
            title = documents.title(number).strip().rstrip(":\N{FULLWIDTH COLON}")
            return Needle(title, answers[0], depths[document], character, token)

        needles = tuple(placed(document) for document in gold)
        context = "".join(text)
        return Prompt(context, self._question_text, self._prefix, answers, needles, total)

    def answers_elsewhere(self, prompt: Prompt) -> dict[str, int]:
        """How often each answer that the question's documents state occurs in other documents."""
        documents = self._documents
        gold = [documents.texts[document] for document in self._question.gold]
        stated = documents.stated_answers(self._question)
        return occurrences(stated, prompt.context, gold, whole_words=True)


class CountedDocuments:
    """Paragraphs with their token counts, computed on first use."""

    def __init__(
        self, counter: TokenCounter, texts: list[str], templates: QuestionAnsweringTemplates
    ):
        self.counter, self.texts, self.templates = counter, texts, templates
        self.intro = f"{templates.intro.format()}\n\n"
        self.head = counter.count_head(self.intro)
        self._folded: list[str] = []
        self._tokens: dict[int, int] = {}
        self._title_tokens: dict[int, int] = {}

    def title(self, number: int) -> str:
        """The line before a paragraph."""
        return f"{self.templates.title.format(number=number)}\n"

    def stated_answers(self, question: Question) -> dict[str, int]:
        """The answers that the question's own documents state; yes and no often are not."""
        gold = "\n".join(self.texts[document] for document in question.gold)
        return occurrences(question.answers, gold, [], whole_words=True)

    def without_answers(self, question: Question, documents: list[int]) -> list[int]:
        """The documents that state none of the question's answers."""
        if not self._folded:
            self._folded = [text.casefold() for text in self.texts]
        patterns = [answer_pattern(answer, True) for answer in self.stated_answers(question)]
        return [
            document
            for document in documents
            if not any(pattern.search(self._folded[document]) for pattern in patterns)
        ]

    def tokens(self, document: int) -> int:
        """Tokens of a paragraph and the empty line after it."""
        if document not in self._tokens:
            # The letter keeps two line breaks from merging: in the prompt, text follows them too.
            text = f"{self.texts[document]}\n\nA"
            self._tokens[document] = self.counter(text) - self.counter("A")
        return self._tokens[document]

    def title_tokens(self, number: int) -> int:
        """Tokens of the line before a paragraph."""
        if number not in self._title_tokens:
            self._title_tokens[number] = self.counter(self.title(number))
        return self._title_tokens[number]

    def longest_tokens(self) -> int:
        """Tokens of the longest paragraph with its title."""
        return max(map(self.tokens, range(len(self.texts)))) + self.title_tokens(len(self.texts))


def prepare(
    task: QuestionAnswering, counter: TokenCounter, task_context: TaskContext
) -> Callable[[SampleContext], QuestionPrompt]:
    """Return a function that makes a sample's prompt builder.

    Samples use the questions in a seeded random order. Distractors come first from the gold
    paragraph's article (SQuAD) or from the question's own paragraphs (HotpotQA).
    """
    read = read_squad if task.format == "squad" else read_hotpotqa
    questions = read(task.path)
    documents = CountedDocuments(counter, questions.documents, task.templates or ENGLISH)
    order = Random(stream_seed("questions", *task_context.seed_parts)).sample(
        range(len(questions.questions)), len(questions.questions)
    )

    def prompt_builder(sample: SampleContext) -> QuestionPrompt:
        random = sample.random
        question = questions.questions[order[sample.index % len(order)]]
        related = random.sample(question.siblings, len(question.siblings))
        known = {*question.gold, *related}
        unrelated = [i for i in range(len(questions.documents)) if i not in known]
        random.shuffle(unrelated)
        distractors = [*related, *unrelated]
        if task.answers_in_haystack == "exclude":
            distractors = documents.without_answers(question, distractors)
        depths = sample.depth_sampler.depths(sample.index, len(question.gold))
        return QuestionPrompt(documents, question, distractors, depths, random)

    return prompt_builder
