"""Three kinds of tokenizers, trained on a little text."""

from random import Random

from support.paths import TINY
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from needlework.tasks import niah, passkey
from needlework.tasks.haystacks.haystack import NEEDLE
from needlework.tasks.haystacks.sentences import random_sentence
from needlework.tasks.prompts.prompt import NO_CHAT_FRAME, ChatFrame
from needlework.tasks.prompts.tokenizer import open_tokenizer


def _training_texts() -> list[str]:
    random = Random(0)
    wording = [passkey.INTRO, passkey.FILLER, passkey.NEEDLE, passkey.QUESTION]
    wording += [niah.INTRO_ONE, NEEDLE, niah.QUESTION_ONE, niah.ANSWER_PREFIX_ONE]
    numbers = [str(random.randrange(10**6)) for _ in range(200)]
    return [*wording * 3, *(random_sentence(random) for _ in range(500)), *numbers]


def byte_level() -> Tokenizer:
    """As GPT-2: counts of pieces add up."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_training_texts(), trainer)
    return tokenizer


def merging_newlines() -> Tokenizer:
    """As Llama 3: a full stop and the line break after it can be one token; two special tokens."""
    tokenizer = Tokenizer(models.BPE())
    pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{text}\n" for text in _training_texts()], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """As SentencePiece: no split at spaces, so merges cross words."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz0123456789\n-.:?"),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(_training_texts())[:40000]], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


KINDS = {kind.__name__: kind for kind in (byte_level, merging_newlines, metaspace)}

ADDITIVE = {
    "byte_level": byte_level,
    "merging_newlines": merging_newlines,
    "tiny": lambda: open_tokenizer(TINY),
}
"""Tokenizers with additive counts, including the shipped one."""
FRAMES = (NO_CHAT_FRAME, ChatFrame("<u>\n", "\n<a>\n", None, True))
