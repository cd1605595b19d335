"""Run a training job in this process, or in several started by torchrun or accelerate."""

import importlib
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import polars as pl
import torch
import transformers
from accelerate import PartialState
from polars.exceptions import PolarsError
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from needlework.config import training
from needlework.config.training import TrainingLoop
from needlework.models.checkpoint import save_model
from needlework.runtime.processes import error_file, exit_with_parent, log_to_parent, run_processes
from needlework.training.checkpoints import Checkpoints, fingerprint
from needlework.training.state import full_tensor

TrainFunction = Callable[..., None]
"""(recipe, checkpoints, **arguments) -> None; leaves the trained model in `checkpoints.product`."""
CHECKPOINT_KEYS = ("checkpoint_every", "keep_checkpoints")
"""Keys of a recipe that do not affect the trained model."""


def run(
    train: TrainFunction,
    recipe: TrainingLoop,
    folder: str | Path,
    *,
    threads: int,
    fingerprint_inputs: dict[str, Any],
    validation: tuple[str, dict[str, Any]] | None = None,
    **arguments: Any,
) -> Checkpoints:
    """Train; resume from the latest intact checkpoint in `folder`, if any.

    Args:
        train: a module-level function, called in each process.
        recipe: sets the number of processes and how they are started.
        folder: for checkpoints; remove it once the product is in its final place.
        threads: total over all processes.
        fingerprint_inputs: whatever else determines the trained model, such as hashes of files.
        validation: `module:class` of a `loop.Validate` and its arguments; each process constructs
            one and passes it to `train` as `validate`.
        arguments: JSON-serializable arguments of `train`.

    Raises:
        ValueError: an error the user can fix, from any of the processes.
    """
    recipe_values = recipe.model_dump(mode="json")
    job: dict[str, Any] = {
        "train": f"{train.__module__}:{train.__qualname__}",
        "recipe_type": type(recipe).__name__,
        "recipe": recipe_values,
        "folder": str(folder),
        "fingerprint": fingerprint(
            recipe=recipe.model_dump(mode="json", exclude=set(CHECKPOINT_KEYS)),
            versions=[torch.__version__, transformers.__version__],
            arguments=arguments,
            validation=validation,
            **fingerprint_inputs,
        ),
        "threads": max(1, threads // recipe.processes),
        "validation": validation,
        "arguments": arguments,
    }
    accelerate_config = recipe_values.get("accelerate_config")
    if recipe.processes == 1 and accelerate_config is None:
        _train(job)
    else:
        launcher = []
        if accelerate_config is not None:
            launcher = ["accelerate.commands.launch", f"--config_file={accelerate_config}"]
            launcher.append(f"--num_processes={recipe.processes}")
        run_processes(__name__, job, folder, recipe.processes, launcher)
    return _checkpoints(job)


def write_product(
    checkpoints: Checkpoints,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    metrics: pl.DataFrame,
    measurements: pl.DataFrame,
    *,
    dtypes: dict[str, torch.dtype] | None = None,
) -> None:
    """Save a trained model and its tables in `checkpoints.product`; every process has to call it.

    Args:
        checkpoints: of this training run.
        model: the trained model; parameters may be sharded over processes.
        tokenizer: the model's tokenizer.
        metrics, measurements: tables from `loop.train`.
        dtypes: parameter dtypes to save, by name; None keeps the current ones.
    """
    gathered: dict[Tensor, Tensor] = {}
    for name, parameter in model.named_parameters():
        if isinstance(parameter, DTensor):
            gathered[parameter] = full_tensor(parameter).cpu()
        elif dtypes:
            parameter.data = parameter.data.to(dtypes[name])
    if PartialState().is_main_process:
        # keep_vars preserves the identity of shared parameters.
        tensors = model.state_dict(keep_vars=True)
        state = {name: gathered.get(tensor, tensor).detach() for name, tensor in tensors.items()}
        save_model(model, tokenizer, checkpoints.product, state)
        write_tables(checkpoints, metrics, measurements)


def write_tables(
    checkpoints: Checkpoints, metrics: pl.DataFrame, measurements: pl.DataFrame
) -> None:
    """Write the tables of `loop.train` next to the trained model in `checkpoints.product`."""
    for name, table in (("metrics", metrics), ("measurements", measurements)):
        try:
            table.write_parquet(checkpoints.product / f"{name}.parquet")
        except (OSError, PolarsError) as error:
            raise ValueError(f"{checkpoints.product}: cannot be written ({error})") from None


def _checkpoints(job: dict[str, Any]) -> Checkpoints:
    recipe = job["recipe"]
    return Checkpoints(
        job["folder"],
        job["fingerprint"],
        every=recipe["checkpoint_every"],
        keep=recipe["keep_checkpoints"],
    )


def _train(job: dict[str, Any]) -> None:
    torch.set_num_threads(job["threads"])
    recipe = getattr(training, job["recipe_type"]).model_validate(job["recipe"])
    checkpoints, started = _checkpoints(job), PartialState().num_processes
    if started != recipe.processes:
        has_config = job["recipe"].get("accelerate_config") is not None
        raise ValueError(
            f"processes: the recipe has {recipe.processes}, but {started} started"
            + ("; on CPUs, remove accelerate_config" if has_config else "")
        )
    arguments = job["arguments"]
    if job["validation"] is not None:
        class_name, class_arguments = job["validation"]
        arguments = {**arguments, "validate": _import(class_name)(**class_arguments)}
    with checkpoints.locked() if PartialState().is_main_process else nullcontext():
        _import(job["train"])(recipe, checkpoints, **arguments)


def _import(name: str) -> Callable[..., Any]:
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def main() -> None:
    """Run one process of the job whose file is the command's argument."""
    exit_with_parent()
    path = Path(sys.argv[1])
    # Without `cpu`, accelerate treats each process on CPUs as a separate job.
    main_process = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    log_to_parent(main_process)
    try:
        _train(json.loads(path.read_text()))
    except (ValueError, OSError) as error:
        error_file(path).write_text(str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
