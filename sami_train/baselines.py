"""Baselines on SAMI's own pairs, through TRL: direct preference optimisation (`method: dpo`) and fine-tuning (`method: sft`).

Both see what a SAMI step would see: the same queries in the same order, the sampled prompt and response tokens as they are (no
text is tokenised again, no end token is added), the recipe's optimizer and learning rates. TRL computes loss and gradient.

What a gradient step's loss is the mean of, as TRL has it: with SFT the response tokens of the step (longer responses weigh more;
SAMI weighs every response alike), with DPO the preference pairs, a response's log-probability being the sum over its tokens.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib.metadata
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sami_train.config import ContrastKind, Recipe
from sami_train.errors import MissingPackage, UserError
from sami_train.pairs import Example

TRL_VERSION = "1.16"
"""The minor version whose trainers are subclassed below: the preparation of data that is skipped is no public method."""
IGNORED = -100
"""Label of a token that is not learned from."""
_REPORTED = (
    "rewards/accuracies",
    "rewards/margins",
    "rewards/chosen",
    "rewards/rejected",
    "logps/chosen",
    "logps/rejected",
)


def require_trl() -> None:
    """Raises MissingPackage when TRL is absent, UserError when it is of another version than the trainers are written for."""
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        raise MissingPackage("trl", extra="trl") from None
    if version.split(".")[:2] != TRL_VERSION.split("."):
        raise UserError(
            f"the methods dpo and sft need trl {TRL_VERSION}, but {version} is installed; run: pip install 'sami-harness[trl]'"
        )


def preference_rows(examples: Iterable[Example], contrast: ContrastKind = "opposites") -> list[dict[str, list[int]]]:
    """Rows for DPO: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``, query by query.

    `opposites`: one row per constitution, the rejected response being that of its opposite (constitutions 2k and 2k + 1); the
    last of an odd number has no opposite and rejects response 0. The others: two rows per further constitution j,
    response 0 over j under prompt 0, and j over 0 under prompt j.
    """
    return [
        {
            "prompt_ids": list(example.prompt_ids[chosen]),
            "chosen_ids": list(example.response_ids[chosen]),
            "rejected_ids": list(example.response_ids[rejected]),
        }
        for example in examples
        for chosen, rejected in _preferences(len(example.prompt_ids), contrast)
    ]


def demonstration_rows(examples: Iterable[Example]) -> list[dict[str, list[int]]]:
    """Rows for SFT, one per constitution: ``input_ids`` (prompt and response) and ``labels`` (-100 on the prompt)."""
    return [
        {"input_ids": [*prompt, *response], "labels": [IGNORED] * len(prompt) + list(response)}
        for example in examples
        for prompt, response in zip(example.prompt_ids, example.response_ids, strict=True)
    ]


def sequences_of_a_query(recipe: Recipe) -> int:
    """Sequences of a prompt and a response that a step runs for a query: with DPO two a row, with SFT one a constitution."""
    size = recipe.constitutions_per_query
    return 2 * len(_preferences(size, recipe.contrast)) if recipe.method == "dpo" else size


def train_baseline(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    steps: int,
    folder: Path,
    on_step: Callable[[dict[str, float]], None],
) -> None:
    """Train `model` in place by ``recipe.method`` (dpo or sft), and leave it in evaluation mode, otherwise as it was.

    Args:
        recipe: what to train with; `gradient_queries` and `loss_scale` mean what they mean for SAMI.
        model: a causal language model in float32 with or without adapters in it (`sami_train.adapters`), or a PEFT model around
            one with an adapter that is trained. DPO's reference is the model as it is handed in; its log-probabilities are
            computed once, before the first step.
        tokenizer: of the model; TRL takes its padding token, which no loss sees.
        examples: those that passed the filters, in order; step n takes the n-th `batch_size` of them, the last step what is left.
        steps: gradient steps; the examples suffice for them.
        folder: TRL's output folder; it leaves nothing there, and a folder that was not there is removed again.
        on_step: called after every gradient step with step (from 1), loss, grad_norm (before clipping), learning_rate,
            tokens_per_second (of prompts and responses, without padding) and, with DPO, TRL's rewards/* (in units of beta times
            nats) and logps/* (nats per response).

    Raises:
        MissingPackage: TRL is not installed.
        UserError: a loss or a gradient is not finite; the process is one of several.
    """
    require_trl()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(
            "the methods dpo and sft train in one process; start the run without torchrun or accelerate launch"
        )
    device = next(model.parameters()).device
    model.eval()
    with _as_it_was(model, recipe), _no_progress_bars(), _empty(folder):
        trainer = _trainer(recipe, model, tokenizer, _batches(examples, recipe, steps), folder, on_step)
        trainer.train()
        trainer.accelerator.free_memory()
    del trainer
    gc.collect()  # trainer and optimizer refer to each other; their memory is wanted for sampling
    model.to(device).eval()


def _preferences(size: int, contrast: str) -> list[tuple[int, int]]:
    """Which response is chosen (under its own prompt) over which, for a query of `size` constitutions."""
    if contrast != "opposites":
        return [pair for j in range(1, size) for pair in ((0, j), (j, 0))]
    return [(i, i ^ 1 if i ^ 1 < size else 0) for i in range(size)]


def _batches(examples: Sequence[Example], recipe: Recipe, steps: int) -> list[Sequence[Example]]:
    """The queries that the gradient of every step comes from."""
    size = recipe.batch_size
    if not (steps - 1) * size < len(examples):
        raise ValueError(f"{len(examples)} examples do not make {steps} batches of {size}")
    used = recipe.gradient_queries or size
    return [examples[step * size : (step + 1) * size][-used:] for step in range(steps)]


def micro_size(sizes: Iterable[int], limit: int) -> int:
    """Queries per forward pass: at most `limit`, and such that batches of these sizes are cut into equal parts.

    TRL takes the mean over the forward passes of a step, which is the mean over its pairs only if all have the same number.
    """
    sizes = set(sizes)
    return max(micro for micro in range(1, limit + 1) if not any(size % micro for size in sizes))


def _trainer(
    recipe: Recipe,
    model: Any,
    tokenizer: Any,
    batches: Sequence[Sequence[Example]],
    folder: Path,
    on_step: Callable[[dict[str, float]], None],
) -> Any:
    """TRL's trainer of the recipe's method, over the batches' rows in their order."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback

    from sami_train.optimizers import make_optimizer

    used = [example for batch in batches for example in batch]
    rows = preference_rows(used, recipe.contrast) if recipe.method == "dpo" else demonstration_rows(used)
    micro = micro_size(map(len, batches), recipe.per_device_train_batch_size)
    per_query = len(rows) // len(used)
    left = iter(rows)
    tokens = [sum(map(_row_tokens, itertools.islice(left, len(batch) * per_query))) for batch in batches]
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(recipe, parameters)
    factors = [recipe.learning_rate_at(step, len(batches)) / recipe.learning_rate for step in range(len(batches))]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factors[min(step, len(factors) - 1)])
    trainer = _trainer_class(recipe)(
        model=model,
        args=_arguments(
            recipe,
            folder,
            steps=len(batches),
            rows=micro * per_query,
            accumulation=len(batches[0]) // micro,
            cpu=next(model.parameters()).device.type == "cpu",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=copy.deepcopy(tokenizer),  # TRL may give it a padding token
        optimizers=(optimizer, schedule),
        callbacks=[_reporter(recipe, tokens, on_step)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def queries_at_once(recipe: Recipe) -> int:
    """Queries in a forward pass of a whole batch."""
    return micro_size([recipe.gradient_queries or recipe.batch_size], recipe.per_device_train_batch_size)


def _row_tokens(row: Mapping[str, Sequence[int]]) -> int:
    """Tokens of a row's sequences."""
    if "input_ids" in row:
        return len(row["input_ids"])
    return 2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"])


def _trainer_class(recipe: Recipe) -> Any:
    """TRL's trainer, but for rows that are token ids already, with the recipe's loss scale, and without sending telemetry."""
    import trl

    base: Any = trl.DPOTrainer if recipe.method == "dpo" else trl.SFTTrainer

    class Trainer(base):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _send_telemetry(self) -> None:
            return

        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().compute_loss(*args, **kwargs) * recipe.loss_scale

    return Trainer


def _arguments(recipe: Recipe, folder: Path, *, steps: int, rows: int, accumulation: int, cpu: bool) -> Any:
    """TRL's configuration. Optimizer and learning rates are not in it: the trainer is given them made."""
    import trl

    common: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": accumulation,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "max_grad_norm": recipe.max_grad_norm or math.inf,  # transformers has no norm to tell where it does not clip
        "bf16": recipe.bf16,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "router_aux_loss_coef": 0.0,  # a mixture of experts learns from the responses alone, as with SAMI
        "seed": recipe.seed,
        "use_cpu": cpu,
        "dataloader_pin_memory": not cpu,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would hide a loss that is not finite
    }
    if recipe.method == "dpo":
        arguments = trl.DPOConfig(
            **common,
            beta=recipe.beta,
            precompute_ref_log_probs=True,
            disable_dropout=False,  # dropout is the model's and the recipe's, as with the other methods
        )
    else:
        arguments = trl.SFTConfig(**common, shuffle_dataset=False, packing=False)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several visible GPUs would get replicas of the model
    return arguments


def _reporter(recipe: Recipe, tokens: Sequence[int], on_step: Callable[[dict[str, float]], None]) -> Any:
    """A callback that checks what TRL logs of a gradient step and hands it on; `tokens` are those of every step."""
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):  # type: ignore[misc]
        began = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.began = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" not in logs:  # the summary at the end
                return
            figures = {
                "step": state.global_step,
                "loss": logs["loss"] / recipe.loss_scale,
                "grad_norm": logs["grad_norm"],
                "learning_rate": logs["learning_rate"],
                "tokens_per_second": tokens[state.global_step - 1] / (time.monotonic() - self.began),
                **{name: logs[name] for name in _REPORTED if name in logs},
            }
            for name, what in (("loss", "loss"), ("grad_norm", "gradient")):
                if not math.isfinite(figures[name]):
                    raise UserError(
                        f"the {what} of step {state.global_step} is not finite; finished iterations are kept; "
                        "lower learning_rate"
                    )
            on_step(figures)

    return Reporter()


@contextlib.contextmanager
def _as_it_was(model: Any, recipe: Recipe) -> Iterator[None]:
    """Undo what TRL does to a model besides training it: its forward, its configuration, a second adapter, checkpointing."""
    wrapped = hasattr(model, "get_base_model")  # the trainer's own adapters lie in the model, without such a wrapper
    adapters = set(model.peft_config) if wrapped else set()
    base = model.get_base_model() if wrapped else model
    checkpointing = base.is_gradient_checkpointing
    touched = {
        id(part): part for part in (model, base, base.config, base.config.get_text_config(), base.generation_config)
    }
    kept = [(part, dict(vars(part))) for part in touched.values() if part is not None]
    try:
        yield
    finally:
        for name in set(model.peft_config if wrapped else ()) - adapters:  # DPO's copy of the adapter as reference
            model.delete_adapter(name)
        if recipe.gradient_checkpointing and not checkpointing:
            base.gradient_checkpointing_disable()
            if adapters:
                base.disable_input_require_grads()
        for part, attributes in kept:
            vars(part).clear()
            vars(part).update(attributes)


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Keep TRL and datasets from drawing bars over the run's own; TRL asks the environment."""
    import datasets

    before, shown = os.environ.get("TQDM_DISABLE"), datasets.are_progress_bars_disabled()
    os.environ["TQDM_DISABLE"] = "1"
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
        if not shown:
            datasets.enable_progress_bars()


@contextlib.contextmanager
def _empty(folder: Path) -> Iterator[None]:
    """Remove the empty folder that TRL makes, unless it was there."""
    there = folder.exists()
    try:
        yield
    finally:
        if not there:
            with contextlib.suppress(OSError):
                folder.rmdir()
