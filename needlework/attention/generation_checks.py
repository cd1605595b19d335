"""Checks of calls whose tokens come in an order that a choice of blocks does not allow."""

from types import MethodType
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType, WeakKeyDictionary, ref

from transformers import PreTrainedModel

if TYPE_CHECKING:
    from needlework.attention.apply import SparseHandle


class GenerationChecks:
    """Checks of `generate` while a block-sparse system is applied to a model.

    Speculative decoding is refused unless the system chooses by token: it computes several tokens
    in one forward, which choose together. Prompts prefilled in chunks (`prefill_chunk_size`) need
    chunks of whole blocks, and the handle learns their whole length.
    """

    def __init__(self, model: PreTrainedModel, handle: "SparseHandle"):
        self._model = model
        self._names = [name for name in _CHECKS if hasattr(model, name)]
        _HANDLES[model] = ref(handle)
        for name in self._names:
            # Bound, so that a copy of the model does not call the original.
            object.__setattr__(model, name, MethodType(_CHECKS[name], model))

    def remove(self) -> None:
        """Restore the model's own methods."""
        _HANDLES.pop(self._model, None)
        for name in self._names:
            object.__delattr__(self._model, name)


_HANDLES: WeakKeyDictionary[PreTrainedModel, ReferenceType["SparseHandle"]] = WeakKeyDictionary()


def _handle(model: PreTrainedModel) -> "SparseHandle | None":
    """The handle of `model`; None if it is a copy of one that has a handle."""
    reference = _HANDLES.get(model)
    return None if reference is None else reference()


def _candidate_generator(model: Any, *args: Any, **kwargs: Any) -> Any:
    """`_get_candidate_generator`, the first step of speculative decoding."""
    handle = _handle(model)
    if handle is not None and not handle.selector.chooses_by_token:
        raise ValueError(
            f"{handle.system.type}: speculative decoding computes several tokens at once, for "
            "which this system would choose other blocks; remove assistant_model and "
            "prompt_lookup_num_tokens"
        )
    return type(model)._get_candidate_generator(model, *args, **kwargs)


def _prefill(
    model: Any,
    input_ids: Any,
    generation_config: Any,
    model_kwargs: dict,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`_prefill`, which computes the prompt, in chunks if `prefill_chunk_size` is set."""
    handle, chunk = _handle(model), generation_config.prefill_chunk_size
    if handle is not None and chunk is not None:
        multiple, mask = handle.system.chunk_multiple, model_kwargs.get("attention_mask")
        if chunk % multiple:
            raise ValueError(
                f"prefill_chunk_size: {chunk} would cut blocks of {multiple} tokens; write a "
                f"multiple, such as {-(-chunk // multiple) * multiple}"
            )
        if mask is not None and (mask.int().argmax(-1) % multiple).any():
            raise ValueError(
                f"prefill_chunk_size: {chunk} would cut blocks of {multiple} tokens, which begin "
                f"after the padding; pad rows by multiples of {multiple}, or write null"
            )
        tokens = input_ids.shape[1] if mask is None else mask.shape[1]
        handle.prompt_tokens = max(handle.prompt_tokens, tokens)
    cache = model_kwargs.get("past_key_values")
    if handle is not None and cache is not None:
        # With a state the cache is not compilable, so generate leaves masks to the forward.
        handle.state_in(cache)
    return type(model)._prefill(model, input_ids, generation_config, model_kwargs, *args, **kwargs)


_CHECKS = {"_get_candidate_generator": _candidate_generator, "_prefill": _prefill}


def refuse_packed_texts(arguments: dict[str, Any]) -> None:
    """Check the arguments of a forward.

    Raises:
        ValueError: a row packs several texts, so that blocks would cross from one to the next.
    """
    positions, name = arguments.get("position_ids"), "position_ids"
    is_packed = arguments.get("cu_seq_lens_q") is not None
    if is_packed:
        name = "cu_seq_lens_q"
    elif positions is not None and arguments.get("attention_mask") is None:
        # As transformers reads them: a step other than 1 starts another text.
        is_packed = positions.ndim == 2 and bool((positions.diff(dim=-1) != 1).any())
    if is_packed:
        raise ValueError(
            f"{name}: has several texts in one row; block-sparse attention needs one text per row; "
            "pad the texts to a batch instead"
        )


def refuse_cut_blocks(
    arguments: dict[str, Any], cached_tokens: int, prompt_tokens: int, multiple: int
) -> None:
    """Check the arguments of a forward against the length of the whole prompt; 0: unknown.

    Raises:
        ValueError: a chunk ends within a block, whose row would choose again in the next chunk.
    """
    inputs = arguments.get("input_ids")
    inputs = arguments.get("inputs_embeds") if inputs is None else inputs
    if multiple == 1 or not prompt_tokens or inputs is None:
        return
    total, mask = cached_tokens + inputs.shape[1], arguments.get("attention_mask")
    if total >= prompt_tokens:
        return
    first = [0]
    if mask is not None and mask.ndim == 2:
        real = mask[:, :total].bool()
        first = (real.int().argmax(-1) + total * ~real.any(-1)).tolist()
    if any((total - start) % multiple for start in first):
        raise ValueError(
            f"input_ids: end at token {total} of the prompt's {prompt_tokens}, within a block of "
            f"{multiple}; prefill in chunks of a multiple of {multiple} tokens, counted from the "
            "first token after the padding"
        )
