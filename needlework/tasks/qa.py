"""RULER's question answering: the paragraph with the answer among others (Hsieh et al., 2024)."""

from collections.abc import Callable
from random import Random

from needlework.config.tasks import QuestionAnswering
from needlework.tasks.context import SampleContext, Setting
from needlework.tasks.formats.question_sets import QASet, Question, read_hotpotqa, read_squad
from needlework.tasks.prompts.budget import Exhausted
from needlework.tasks.prompts.prompt import Needle, Prompt
from needlework.tasks.prompts.token_counter import Counter
from needlework.tasks.seeds import stream_seed

TOLD = (
    "Answer the question based on the given documents. Only give me the answer and do not output"
    " any other words."
)
INTRO = f"{TOLD}\n\nThe following are given documents.\n\n"
QUESTION = f"{TOLD}\n\nQuestion: {{query}}"
ANSWER_PREFIX = " Answer:"
TITLE = "Document {number}:\n"
_TRIED = 20
"""Paragraphs beyond the first too long one that are tried in the room that is left."""


class Draft:
    """The gold paragraphs of a question among as many others as fit. A fill.Draft."""

    def __init__(
        self,
        counted: "Documents",
        question: Question,
        others: list[int],
        depths: list[float],
        random: Random,
    ):
        """`others` in the order in which they are taken; `depths` of the gold paragraphs."""
        self._documents, self._question, self._depths = counted, question, depths
        self._others, self._random = others, random.getrandbits(64)
        self._asked = QUESTION.format(query=question.question)
        self._tail = counted.counter.tail(self._asked, ANSWER_PREFIX)

    def build(self, tokens: int) -> Prompt:
        counted, gold = self._documents, self._question.gold
        total = counted.head + self._tail
        total += sum(counted.title(i + 1) + counted.tokens(d) for i, d in enumerate(gold))
        chosen, left = [], _TRIED
        for document in self._others:
            more = counted.title(len(gold) + len(chosen) + 1) + counted.tokens(document)
            if total + more <= tokens:
                chosen.append(document)
                total += more
            elif (left := left - 1) == 0:
                break
        if len(chosen) == len(self._others) and total + counted.longest() < tokens:
            raise Exhausted(total)
        return self._prompt(chosen, total)

    def _prompt(self, chosen: list[int], total: int) -> Prompt:
        counted, gold = self._documents, self._question.gold
        order = list(chosen)
        Random(self._random).shuffle(order)
        last = len(order) + len(gold) - 1
        meant = dict(zip(gold, self._depths, strict=True))
        for document in sorted(gold, key=meant.get):
            order.insert(round(meant[document] / 100 * last), document)
        text, at, character, places = [INTRO], counted.head, len(INTRO), {}
        for number, document in enumerate(order, start=1):
            places[document] = (number, character, at)
            text.append(f"{TITLE.format(number=number)}{counted.texts[document]}\n\n")
            character += len(text[-1])
            at += counted.title(number) + counted.tokens(document)
        answers = self._question.answers

        def placed(document: int) -> Needle:
            number, character, token = places[document]
            title = f"Document {number}"
            return Needle(title, answers[0], meant[document], character, token)

        needles = tuple(placed(document) for document in gold)
        return Prompt("".join(text), self._asked, ANSWER_PREFIX, tuple(answers), needles, total)


class Documents:
    """Paragraphs and their tokens, counted when first asked for."""

    def __init__(self, counter: Counter, texts: list[str]):
        self.counter, self.texts = counter, texts
        self.head = counter.head(INTRO)
        self._tokens: dict[int, int] = {}
        self._titles: dict[int, int] = {}

    def tokens(self, document: int) -> int:
        """Of a paragraph and the empty line behind it."""
        if document not in self._tokens:
            # A letter behind: two line breaks may be one token, as they are not in the prompt.
            text = f"{self.texts[document]}\n\nA"
            self._tokens[document] = self.counter(text) - self.counter("A")
        return self._tokens[document]

    def title(self, number: int) -> int:
        """Of the line before a paragraph."""
        if number not in self._titles:
            self._titles[number] = self.counter(TITLE.format(number=number))
        return self._titles[number]

    def longest(self) -> int:
        """Of the longest paragraph, with its title."""
        return max(map(self.tokens, range(len(self.texts)))) + self.title(len(self.texts))


def drafts(
    task: QuestionAnswering, counter: Counter, setting: Setting
) -> Callable[[SampleContext], Draft]:
    """What makes the draft of a sample.

    The samples go through the set's questions in an order of the seed's. Paragraphs of the gold
    one's own article (SQuAD), or those that come with the question (HotpotQA), are taken first.
    """
    found: QASet = (read_squad if task.format == "squad" else read_hotpotqa)(task.path)
    counted = Documents(counter, found.documents)
    order = Random(stream_seed("questions", *setting.stream)).sample(
        range(len(found.questions)), len(found.questions)
    )

    def draft(turn: SampleContext) -> Draft:
        random = turn.random
        question = found.questions[order[turn.index % len(order)]]
        near = random.sample(question.siblings, len(question.siblings))
        known = {*question.gold, *near}
        far = [document for document in range(len(found.documents)) if document not in known]
        random.shuffle(far)
        depths = turn.spread.depths(turn.index, len(question.gold))
        return Draft(counted, question, [*near, *far], depths, random)

    return draft
