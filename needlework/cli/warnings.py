"""Settings of a valid experiment that are probably a mistake."""

from collections.abc import Iterator
from pathlib import Path

from needlework.config.experiment import Experiment
from needlework.config.models.tokenizer_files import chat_templates
from needlework.config.paths import json_object
from needlework.tasks.prompts.tokenizer import tokenizer_folder


def warnings(experiment: Experiment, fetch: bool = False) -> Iterator[str]:
    """One line for each likely mistake: key, consequence, and what to write instead.

    Args:
        fetch: also look into models on the hub.
    """
    yield from _missing_chat_templates(experiment, fetch)
    yield from _contradictory_files(experiment)
    yield from _too_few_samples(experiment)
    yield from _perplexity_is_no_likelihood(experiment)


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer of a checkpoint has a chat template."""
    try:
        return bool(chat_templates(folder))
    except ValueError:
        return False


def _missing_chat_templates(experiment: Experiment, fetch: bool) -> Iterator[str]:
    for name in dict.fromkeys(
        experiment.root_model(system.model) for system in experiment.systems.values()
    ):
        model = experiment.models[name]
        source = model.tokenizer_source
        if source is None or not model.chat_undecided:
            continue
        if not fetch and not Path(source.path).is_dir():
            continue
        if has_chat_template(tokenizer_folder(source.path, source.revision)):
            yield (
                f"models.{name}: the checkpoint has a chat template that prompts do not use, which "
                "can lower its scores and make them invalid; write `chat_template: true` (or "
                "`false` for a base model)"
            )


def _contradictory_files(experiment: Experiment) -> Iterator[str]:
    """Settings that a checkpoint's files state otherwise than the experiment, or each other."""
    for name, model in experiment.models.items():
        config = {} if model.local is None else model.local.config_json
        text = config.get("text_config") or config
        # transformers prefers the newer key.
        stored = config.get("dtype") or config.get("torch_dtype") or text.get("dtype")
        if model.local is not None and stored == "bfloat16" and model.local.dtype == "float16":
            yield (
                f"models.{name}.dtype: float16 cannot hold the largest values of bfloat16, in "
                "which the checkpoint is stored; write dtype: bfloat16"
            )
        source, positions = model.tokenizer_source, model.positions
        if source is None or positions is None or not Path(source.path).is_dir():
            continue
        limit = (json_object(Path(source.path) / "tokenizer_config.json") or {}).get(
            "model_max_length"
        )
        longest = max(experiment.lengths, default=0)
        if isinstance(limit, int) and limit < longest <= positions:
            yield (
                f"models.{name}: lengths up to {longest} fit its {positions} positions, which "
                f"config.json decides, but its tokenizer's model_max_length is {limit}; write the "
                "lengths that the model was made for"
            )


def _too_few_samples(experiment: Experiment) -> Iterator[str]:
    depths = {"depths": experiment.depths}
    for name, task in experiment.tasks.items():
        if (own := getattr(task, "depths", None)) is not None:
            depths[f"tasks.{name}.depths"] = own
    if not any(
        task.has_depths and getattr(task, "depths", None) is None
        for task in experiment.tasks.values()
    ):
        del depths["depths"]
    for key, values in depths.items():
        if values != "uniform" and experiment.samples < len(values):
            yield (
                f"{key}: {experiment.samples} samples at {len(values)} depths leave cells of the "
                f"heatmap empty; write `depths: {{linear: {experiment.samples}}}`, or at least "
                f"`samples: {len(values)}`"
            )


def _perplexity_is_no_likelihood(experiment: Experiment) -> Iterator[str]:
    for name, stream in experiment.streams.items():
        for system in stream.systems or experiment.systems:
            reader = stream.read_by(system)
            attention = reader.attention if reader.model else experiment.systems[system].attention
            if attention is None:
                continue
            if not (attention.is_causal if reader.overlap else attention.is_causal_with_state):
                yield (
                    f"streams.{name}: system `{system}` ({attention.type}) lets later tokens "
                    "affect earlier ones, so its perplexity is not a left-to-right likelihood; "
                    f"write {attention.causal_setting} in its attention to compare it with others"
                )
