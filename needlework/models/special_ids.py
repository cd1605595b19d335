"""Tokens that end an answer or pad rows, which a checkpoint states in up to three places."""

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> list[int]:
    """Ids that end an answer: the union of generation_config, config and tokenizer, in this order.

    The files of a checkpoint often disagree: an instruct model ends turns with its tokenizer's
    `<|im_end|>` while generation_config.json still has the base model's end of text.
    """
    text_config = model.config.get_text_config(decoder=True)
    sources = [model.generation_config, model.config, text_config, tokenizer]
    ids: list[int] = []
    for source in sources:
        stated = getattr(source, "eos_token_id", None)
        ids += [] if stated is None else stated if isinstance(stated, list) else [stated]
    return list(dict.fromkeys(ids))


def pad_id(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that pads rows: the tokenizer's, or else the model's, or else one that ends answers.

    Only ids with an embedding count: tokenizers often have a pad token that the model was never
    given. Padding is masked, so its choice changes no result.
    """
    text_config = model.config.get_text_config(decoder=True)
    sources = [tokenizer, model.generation_config, model.config, text_config]
    ids = [getattr(source, "pad_token_id", None) for source in sources]
    embeddings = model.get_input_embeddings().weight.shape[0]
    ids += end_ids(model, tokenizer)
    return next((i for i in ids if i is not None and 0 <= i < embeddings), 0)
