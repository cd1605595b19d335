"""Sentences of texts by Punkt (Kiss and Strunk, 2006), and a haystack's table of them."""

import logging
import textwrap
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import polars as pl
from nltk.data import find
from nltk.tokenize.punkt import PunktSentenceTokenizer, PunktTokenizer, PunktTrainer
from tokenizers import Tokenizer

from needlework.runtime.progress import track
from needlework.tasks.prompts.token_counter import Counter
from needlework.tasks.prompts.tokenizer import uncut

TRAINING_CHARACTERS = 2_000_000
"""Text that Punkt learns abbreviations from, where nltk's own data is not installed."""
MOST_CHARACTERS = 500
"""Of a sentence; longer ones are cut between words, or where there is no space."""
SPARE = 1.25
"""Tokens of a haystack over those of the longest prompt, so that samples differ."""
_BATCH_SENTENCES = 1000
_log = logging.getLogger(__name__)


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """The sentences of texts in their order, white space in them made single spaces.

    nltk's punkt_tab data for English is used where nltk finds it installed. Else Punkt is trained
    on the first TRAINING_CHARACTERS of the texts themselves. The log says which it was.
    """
    texts, read = iter(texts), []
    punkt = _installed()
    if punkt is None:
        characters = 0
        for text in texts:
            read.append(text)
            characters += len(text)
            if characters >= TRAINING_CHARACTERS:
                break
        punkt = trained("\n\n".join(read)[:TRAINING_CHARACTERS])
    for text in chain(read, texts):
        line = " ".join(text.split())
        for start, end in punkt.span_tokenize(line):
            if end - start <= MOST_CHARACTERS:
                yield line[start:end]
            else:
                # Text without sentence ends would be one unit, and no prompt could be filled.
                yield from textwrap.wrap(line[start:end], MOST_CHARACTERS, break_on_hyphens=False)


def trained(text: str) -> PunktSentenceTokenizer:
    """Punkt with abbreviations, collocations and sentence starters of `text`."""
    parameters = PunktTrainer(text).get_params()
    _log.info(
        "sentences: by Punkt trained on %d characters of the text, %d abbreviations found"
        " (punkt_tab is not installed)",
        len(text),
        len(parameters.abbrev_types),
    )
    return PunktSentenceTokenizer(parameters)


def _installed() -> PunktSentenceTokenizer | None:
    try:
        where = find("tokenizers/punkt_tab/english/")
    except LookupError:
        return None
    _log.info("sentences: by nltk's punkt_tab data in %s", where)
    return PunktTokenizer("english")


def split(texts: Iterable[str], tokenizer: Tokenizer, longest_tokens: int) -> pl.DataFrame:
    """A haystack's sentences with their tokens, enough for prompts of `longest_tokens` tokens.

    Texts are read until there are SPARE times as many tokens, or to their end.

    Returns:
        One row a sentence, in the order of the text: sentence (str), tokens (i64, those of the
        sentence and the space before it).
    """
    counter, enough = Counter(uncut(tokenizer)), SPARE * longest_tokens
    units, counts, total = [], [], 0
    with track(description="sentences", total=round(enough), unit="token") as progress:
        found = sentences(texts)
        while total < enough and (batch := list(islice(found, _BATCH_SENTENCES))):
            tokens = counter.in_order(batch).tolist()
            units += batch
            counts += tokens
            total += sum(tokens)
            progress.update(min(sum(tokens), progress.total - progress.n))
    _log.info(
        "%d sentences of %d tokens, the longest of %d", len(units), total, max(counts, default=0)
    )
    schema = {"sentence": pl.String, "tokens": pl.Int64}
    return pl.DataFrame({"sentence": units, "tokens": counts}, schema)
