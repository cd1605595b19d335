"""Free answers, of any words, beside their references."""

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


def normalized(text: str) -> str:
    """The text as SQuAD compares it (Rajpurkar et al., 2016).

    Lower case, without ASCII punctuation and the articles a, an, the, single spaces. A text of
    which nothing would be left (`The The`) is only lower-cased and stripped, so that an empty
    answer does not equal it.
    """
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split()) or text.lower().strip()


def says_only(answer: str, references: Sequence[str]) -> bool:
    """Whether the answer is the references and nothing else, all `normalized`.

    One reference must equal the answer. Several may stand in any order, each once, with nothing
    but punctuation and the word `and` between them.
    """
    if len(references) == 1:
        return normalized(answer) == normalized(references[0])
    rest = f" {normalized(answer)} "
    # The longest first: a reference may be part of another.
    for reference in sorted(map(normalized, references), key=len, reverse=True):
        before, found, after = rest.partition(f" {reference} ")
        if not found:
            return False
        rest = f"{before} | {after}"
    return set(rest.split()) <= {"|", "and"}


def overlap(answer: str, references: Sequence[str], rouge: str) -> float:
    """The best F measure (0-1) of the answer with one of the references, by `rouge_score`.

    Args:
        answer, references: what is compared, letter case and punctuation apart; nothing is stemmed.
        rouge: `rougeL`, of the longest common subsequence of words (Lin, 2004); `rouge1`, of the
            words as a bag, which is the token F1 of SQuAD with articles counted.
    """
    return _scorer(rouge).score_multi(references, answer)[rouge].fmeasure


class _Words:
    """The library's own tokens where text is ASCII; beyond, it would drop every letter."""

    def tokenize(self, text: str) -> list[str]:
        return _WORD.findall(text.lower())


@cache
def _scorer(rouge: str) -> "RougeScorer":
    # Here, because it brings all of nltk, a second that other answers need not spend.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([rouge], tokenizer=_Words())
