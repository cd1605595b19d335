"""Comparison of free-form answers with their references."""

import re
import string
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_WORD = re.compile(r"[^\W_]+")


def normalize(text: str) -> str:
    """The text as SQuAD compares it (Rajpurkar et al., 2016).

    Lower case, without ASCII punctuation and the articles a, an, the; single spaces. A text of
    which nothing would remain (`The The`) is only lower-cased and stripped, so that it does not
    equal an empty answer.
    """
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split()) or text.lower().strip()


def consists_of(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer is the references and nothing else, after `normalize`.

    A single reference must equal the answer. Several may come in any order, each once, with
    only punctuation and the word `and` between them.
    """
    if len(references) == 1:
        return normalize(answer) == normalize(references[0])
    rest = f" {normalize(answer)} "
    # The longest first: a reference may be part of another.
    for reference in sorted(map(normalize, references), key=len, reverse=True):
        before, match, after = rest.partition(f" {reference} ")
        if not match:
            return False
        rest = f"{before} | {after}"
    return set(rest.split()) <= {"|", "and"}


def rouge_f1(answer: str, references: Sequence[str], variant: str) -> float:
    """The best F measure (0-1) of the answer with any of the references, by `rouge_score`.

    Args:
        answer, references: texts to compare, ignoring case and punctuation, without stemming.
        variant: `rougeL`, the longest common subsequence of words (Lin, 2004); `rouge1`, bags of
            words, which is SQuAD's token F1 except that articles count.
    """
    return _scorer(variant).score_multi(references, answer)[variant].fmeasure


class _WordTokenizer:
    """The library's tokens for ASCII text; for other text, which it would drop, also words."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@cache
def _scorer(variant: str) -> "RougeScorer":
    # Imported on use: it loads all of nltk, a second that other answers need not spend.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([variant], tokenizer=_WordTokenizer())
