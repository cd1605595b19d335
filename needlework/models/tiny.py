"""The pretrained model: a word tokenizer, a small Llama, and an initialization that can copy."""

from collections.abc import Iterable

import torch
from tokenizers import Regex, Tokenizer, decoders, processors
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from needlework.config.training import Pretrain

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
# A word includes the space or hyphen before it; digits, newlines and other spaces stay single.
PIECE = r"[ -]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s"


def word_tokenizer(texts: Iterable[str], max_positions: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token for each word of `texts`, and bytes for everything else.

    Tokens never cross the boundaries of `PIECE`, so encoding two texts that meet at such a boundary
    separately gives the same tokens as encoding them joined. Encoding prepends `<s>`.

    Args:
        texts: contain the words, with their leading space or hyphen.
        max_positions: `model_max_length` of the tokenizer.
    """
    splitter = Sequence(
        [Split(Regex(PIECE), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    pieces = dict.fromkeys(piece for text in texts for piece, _ in splitter.pre_tokenize_str(text))
    alphabet = sorted(ByteLevel.alphabet())
    words = sorted(piece for piece in pieces if len(piece) > 1)
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, EOS, *alphabet, *words])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A $B",
        special_tokens=[(BOS, vocabulary[BOS])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
    )


def tiny_llama(
    config: Pretrain, tokenizer: PreTrainedTokenizerFast, generator: torch.Generator
) -> LlamaForCausalLM:
    """Create a float32 Llama with the shape and initialization that `config` describes.

    Raises:
        ValueError: hidden_size is not a multiple of head_size.
    """
    if config.hidden_size % config.head_size:
        raise ValueError(
            f"hidden_size: {config.hidden_size} is not a multiple of head_size {config.head_size}; "
            "change one of them"
        )
    model = LlamaForCausalLM(llama_config(config, tokenizer))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                std = 0.09 if config.start == "random" else 0.02
                std = config.hidden_size**-0.5 if "embed_tokens" in name else std
                parameter.normal_(0.0, std, generator=generator)
            elif name.endswith(".bias"):
                parameter.zero_()
                if config.start == "random" and ("q_proj" in name or "k_proj" in name):
                    parameter.normal_(0.0, 0.3, generator=generator)
        if config.start == "induction":
            _set_induction_heads(model, generator)
    return model


def llama_config(config: Pretrain, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """The config of a Llama with the shape of `config` and the tokenizer's vocabulary."""
    heads = config.hidden_size // config.head_size
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.feed_forward_size,
        num_hidden_layers=config.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=config.head_size,
        max_position_embeddings=config.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attention_bias=True,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )


# Strengths of the induction circuit. GATHER: scale of the logit that selects an offset; SLOT: norm
# of a gathered token, relative to the token's own 1; MATCH: logit of one matching offset; COPY:
# norm of a copied token.
GATHER, SLOT, MATCH, COPY = 8.0, 0.7, 5.0, 1.0


def _set_induction_heads(model: LlamaForCausalLM, generator: torch.Generator) -> None:
    """Initialize attention as induction heads (Elhage et al., 2021; Olsson et al., 2022).

    Heads of layer 0 copy the tokens 1, 2, ... positions back into slots of the residual stream.
    Heads of later layers attend to positions whose slots, shifted by one, match their own, and copy
    the token there.
    """
    shape = model.config
    heads, size, width = shape.num_attention_heads, shape.head_dim, shape.hidden_size
    root = width**0.5  # norm of a vector after RMSNorm

    basis = _orthogonal(width, generator)
    slots = [basis[:, h * size : (h + 1) * size] for h in range(heads)]
    read = _orthogonal(width, generator)[:size]
    # The fastest rotary pairs select offsets; matching uses the slow ones, which keep content.
    rate = shape.rope_parameters["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    is_slow = (rate < 0.02).float().repeat(2)
    fast = min(5, size // 2)

    first = model.model.layers[0].self_attn
    for h in range(heads):
        rows = slice(h * size, (h + 1) * size)
        amplitude = (GATHER * size**0.5) ** 0.5
        angle = rate[:fast] * (h + 1)
        key, query = torch.zeros(2, size // 2), torch.zeros(2, size // 2)
        key[0, :fast] = amplitude
        query[0, :fast], query[1, :fast] = amplitude * angle.cos(), -amplitude * angle.sin()
        first.k_proj.bias[rows], first.q_proj.bias[rows] = key.flatten(), query.flatten()
        first.v_proj.weight[rows] = read
        # A projection to `size` of `width` coordinates has norm sqrt(size) after RMSNorm.
        first.o_proj.weight[:, rows] = slots[h] * (SLOT / size**0.5)

    share = 1 / (1 + heads * SLOT**2) ** 0.5
    norms = [share * size**0.5, *[share * SLOT * root] * heads]
    for layer in model.model.layers[1:]:
        attention = layer.self_attn
        copied = _orthogonal(width, generator)
        for h in range(heads):
            rows = slice(h * size, (h + 1) * size)
            current, previous = (read if h == 0 else slots[h - 1].T), slots[h].T
            gain = MATCH * size**0.5 / (norms[h] * norms[h + 1])
            gain = (gain * size / float(is_slow.sum())) ** 0.5
            attention.q_proj.weight[rows] = gain * is_slow[:, None] * current
            attention.k_proj.weight[rows] = gain * is_slow[:, None] * previous
            value = copied[rows]
            attention.v_proj.weight[rows] = value
            attention.o_proj.weight[:, rows] = value.T * (COPY / root)


def _orthogonal(width: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]
