"""Split texts into sentences with Punkt (Kiss and Strunk, 2006), for haystacks."""

import logging
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TYPE_CHECKING

import polars as pl
from tokenizers import Tokenizer

from needlework.runtime.progress import track
from needlework.tasks.haystacks.sentence_ends import split_at_ends
from needlework.tasks.prompts.token_counter import TokenCounter

# nltk imports scipy.stats, which takes seconds: only where a text is split.
if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktSentenceTokenizer

TRAINING_CHARACTERS = 2_000_000
"""Text that Punkt is trained on if nltk's data is not installed."""
MAX_SENTENCE_CHARACTERS = 500
"""Longer sentences are cut between words, or anywhere if there is no space."""
OVERSUPPLY = 1.25
"""Tokens of a haystack relative to the longest prompt, so that samples differ."""
_BATCH_SENTENCES = 1000
_log = logging.getLogger(__name__)


def split_sentences(texts: Iterable[str]) -> Iterator[str]:
    """Split texts into sentences in order, with white space collapsed to single spaces.

    Full stops, question and exclamation marks of other scripts end a sentence, too. Uses nltk's
    English punkt_tab data if installed. Otherwise Punkt is trained on the first
    TRAINING_CHARACTERS of the texts. The log says which.
    """
    texts, read = iter(texts), []
    punkt = _installed_punkt()
    if punkt is None:
        characters = 0
        for text in texts:
            read.append(text)
            characters += len(text)
            if characters >= TRAINING_CHARACTERS:
                break
        punkt = _train_punkt("\n\n".join(read)[:TRAINING_CHARACTERS])
    for text in chain(read, texts):
        line = " ".join(text.split())
        for start, end in punkt.span_tokenize(line):
            for sentence in split_at_ends(line[start:end]):
                if len(sentence) <= MAX_SENTENCE_CHARACTERS:
                    yield sentence
                else:
                    # Text without sentence ends would be one unit that fits no prompt.
                    yield from textwrap.wrap(
                        sentence, MAX_SENTENCE_CHARACTERS, break_on_hyphens=False
                    )


def _train_punkt(text: str) -> "PunktSentenceTokenizer":
    """Learn abbreviations, collocations and sentence starters from `text`."""
    from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTrainer

    parameters = PunktTrainer(text).get_params()
    _log.info(
        "sentences: Punkt trained on %d characters of the text, %d abbreviations found"
        " (punkt_tab is not installed)",
        len(text),
        len(parameters.abbrev_types),
    )
    return PunktSentenceTokenizer(parameters)


def _installed_punkt() -> "PunktSentenceTokenizer | None":
    from nltk.data import find
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        location = find("tokenizers/punkt_tab/english/")
    except LookupError:
        return None
    _log.info("sentences: nltk's punkt_tab data in %s", location)
    return PunktTokenizer("english")


def sentence_table(texts: Iterable[str], tokenizer: Tokenizer, longest_tokens: int) -> pl.DataFrame:
    """Split texts into a haystack's table of sentences, enough for prompts of `longest_tokens`.

    Reads texts until there are OVERSUPPLY times as many tokens, or to their end.

    Returns:
        One row per sentence in text order: sentence (str), tokens (i64, those of the sentence and
        the space before it).
    """
    counter, enough = TokenCounter(tokenizer), OVERSUPPLY * longest_tokens
    units: list[str] = []
    counts: list[int] = []
    total, shown = 0, round(enough)
    with track(description="sentences", total=shown, unit="token") as progress:
        sentences = split_sentences(texts)
        while total < enough and (batch := list(islice(sentences, _BATCH_SENTENCES))):
            tokens = counter.count_in_place(batch).tolist()
            units += batch
            counts += tokens
            progress.update(min(sum(tokens), max(0, shown - total)))
            total += sum(tokens)
    _log.info(
        "%d sentences with %d tokens, the longest has %d",
        len(units),
        total,
        max(counts, default=0),
    )
    schema = {"sentence": pl.String, "tokens": pl.Int64}
    return pl.DataFrame({"sentence": units, "tokens": counts}, schema)
