"""The training loop: sample contrasts from the current model, take a few steps from the base, repeat.

Iteration n starts from the base weights and learns from responses of the model of iteration n - 1, sampled on the other half
of the queries (Fränken et al., NeurIPS 2024, algorithm 1). Every artefact is kept in the run's folder:

    recipe.yaml  summary.json  iteration-1/{pairs.jsonl, metrics.jsonl, summary.json, model/}  iteration-2/...

Whatever is finished is never done again: pairs are kept row by row, an iteration by its summary, steps by checkpoints
(`save_steps`), and an interrupted run ends with the weights of an undisturbed one, to the bit.
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_train.config import Recipe, dump_recipe
from sami_train.constitutions import Principle
from sami_train.data import Query
from sami_train.errors import UserError
from sami_train.files import append_rows, read_rows, write_json
from sami_train.models import Source
from sami_train.pairs import Contrast, Example, filter_rule, plan_contrasts, split_queries
from sami_train.prompts import Template

Progress = Callable[[str, int, int, str], None]
"""Called as (what, done, total, figure): for example ("iteration 1 steps", 2, 4, "loss 0.671")."""


@dataclass(frozen=True)
class TrainingData:
    """What a recipe is applied to: training queries, learned principles and templates by kind of task."""

    queries: Sequence[Query]
    principles: Mapping[str, Sequence[Principle]]
    templates: Mapping[str, Template]


def train(
    recipe: Recipe,
    source: Source,
    data: TrainingData,
    folder: Path,
    *,
    device: str = "cpu",
    trust_remote_code: bool = False,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Run every iteration that is not finished in `folder`; the last one's model is in ``iteration-N/model``.

    Returns:
        The summary that is also written to ``summary.json``.

    Raises:
        UserError: too few queries, nothing left after filtering, a loss that is not finite, a full disk.
    """
    if finished := read_json_file(folder / "summary.json"):
        return finished
    first, second, unseen = split_queries(data.queries, recipe)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    run = _Run(recipe, source, data, folder, device, trust_remote_code, progress)
    for iteration in range(1, recipe.iterations + 1):
        run.iteration(iteration, first if iteration % 2 else second, unseen)
    iterations = [
        read_json_file(folder / f"iteration-{n}" / "summary.json") or {} for n in range(1, recipe.iterations + 1)
    ]
    summary = {
        "recipe": recipe.name,
        "from": str(source),
        "iterations": [{k: v for k, v in row.items() if k != "evaluation"} for row in iterations],
        "evaluation": iterations[-1].get("evaluation"),
    }
    write_json(folder / "summary.json", summary)
    return summary


def final_model(folder: Path, recipe: Recipe) -> Path:
    """Where the trained model of a finished run lies."""
    return folder / f"iteration-{recipe.iterations}" / "model"


class _Run:
    """One call of `train`: holds the loaded model between the parts of an iteration."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        data: TrainingData,
        folder: Path,
        device: str,
        trust_remote_code: bool,
        progress: Progress,
    ) -> None:
        self.recipe, self.source, self.data, self.folder = recipe, source, data, folder
        self.device, self.trust_remote_code, self.progress = device, trust_remote_code, progress
        self._loaded: tuple[str, Any] | None = None
        self._tokenizer: Any = None

    def iteration(self, number: int, half: Sequence[Query], unseen: Sequence[Query]) -> None:
        place = self.folder / f"iteration-{number}"
        if (place / "summary.json").is_file():
            return
        place.mkdir(parents=True, exist_ok=True)
        sampled_from = (
            self.source if number == 1 else Source("folder", str(self.folder / f"iteration-{number - 1}" / "model"))
        )
        recipe = self.recipe
        queries = list(half[: recipe.queries_needed(number)])
        contrasts = self._contrasts(queries, seed=recipe.seed * 1000 + number)
        label = f"iteration {number}"
        examples = self._sample(contrasts, sampled_from, place / "pairs.jsonl", f"{label} responses")
        kept = [e for e in examples if e.filtered is None][: recipe.batch_size * recipe.batches(number)]
        filtered: dict[str, int] = {rule: sum(e.filtered == rule for e in examples) for rule in recipe.filters}
        if not kept:
            raise UserError(
                f"{place}/pairs.jsonl: every pair was filtered out ({filtered}); relax 'filters' or raise max_new_tokens"
            )
        unseen_examples = self._sample(
            self._contrasts(unseen, seed=recipe.seed * 1000),
            self.source,
            self.folder / "unseen.jsonl",
            "unseen responses",
        )
        unseen_examples = [e for e in unseen_examples if e.filtered is None]
        before = self._measure(unseen_examples, self.folder / "unseen-before.json", self.source)
        steps = self._steps(number, kept, filtered, place, f"{label} steps")
        evaluation = None
        if before is not None:
            after = self._contrast_figures(unseen_examples)
            evaluation = {"n": len(unseen_examples), "before": before, "after": after}
        self._save_model(place / "model")
        summary = {
            "iteration": number,
            "queries": len(queries),
            "pairs": len(kept),
            "filtered": filtered,
            "steps": len(steps),
            "loss_first": steps[0]["loss"],
            "loss_last": steps[-1]["loss"],
            "accuracy_last": (steps[-1]["accuracy/row"] + steps[-1]["accuracy/col"]) / 2,
            "mi_lower_bound_last": steps[-1]["mi_lower_bound"],
            "evaluation": evaluation,
        }
        write_json(place / "summary.json", summary)

    def _contrasts(self, queries: Sequence[Query], seed: int) -> list[Contrast]:
        return plan_contrasts(queries, self.data.principles, self.data.templates, self.recipe, seed)

    # Sampling

    def _sample(self, contrasts: Sequence[Contrast], source: Source, file: Path, label: str) -> list[Example]:
        """One example per contrast, read from `file` where it is there already; batches follow the plan, not what is missing."""
        from sami_train.generation import Generated, encode_prompt, generate

        recipe = self.recipe
        raw = {(row["query_id"], row["side"]): row for row in read_rows(file)}
        flat = [(contrast, side) for contrast in contrasts for side in range(len(contrast.prompts))]
        done = {index for index, (c, side) in enumerate(flat) if (c.query.id, side) in raw}
        if len(done) < len(flat):
            model, tokenizer = self._model(source), self._tokenizer
            by_task: dict[str, list[int]] = {}
            for index, (contrast, _) in enumerate(flat):
                by_task.setdefault(contrast.query.task, []).append(index)
            for task, indices in by_task.items():
                batches: Iterator[dict[int, Generated]] = generate(
                    model,
                    tokenizer,
                    [flat[i][0].sampling_prompts[flat[i][1]] for i in indices],
                    max_new_tokens=recipe.max_new_tokens,
                    max_prompt_tokens=recipe.max_prompt_tokens,
                    stop=self.data.templates[task].stop(recipe.style),
                    temperature=recipe.temperature,
                    top_p=recipe.top_p,
                    seed=recipe.seed,
                    batch_size=recipe.sampling_batch_size,
                    done={place for place, index in enumerate(indices) if index in done},
                )
                for batch in batches:
                    rows = []
                    for place, generated in batch.items():
                        contrast, side = flat[indices[place]]
                        if (contrast.query.id, side) not in raw:
                            trained_on = encode_prompt(tokenizer, contrast.prompts[side], recipe.max_prompt_tokens)
                            rows.append(_raw_row(contrast, side, generated, trained_on.ids))
                    append_rows(file, rows)
                    raw.update({(row["query_id"], row["side"]): row for row in rows})
                    done.update(indices[place] for place in batch)
                    self.progress(label, len(done), len(flat), "")
        return [self._example(contrast, raw) for contrast in contrasts]

    def _example(self, contrast: Contrast, raw: Mapping[tuple[str, int], Mapping[str, Any]]) -> Example:
        rows = [raw[contrast.query.id, side] for side in range(len(contrast.prompts))]
        texts = tuple(str(row["text"]) for row in rows)
        ids = tuple(tuple(row["response_ids"]) for row in rows)
        rule = filter_rule(self.recipe.filters, contrast.query.task, texts, ids, [row["finish_reason"] for row in rows])
        return Example(
            contrast.query.id,
            contrast.query.task,
            tuple(c.id for c in contrast.constitutions),
            tuple(tuple(row["prompt_ids"]) for row in rows),
            ids,
            texts,
            rule,
        )

    # Gradient steps

    def _steps(
        self, number: int, examples: Sequence[Example], filtered: Mapping[str, int], place: Path, label: str
    ) -> list[dict[str, float]]:
        """Take the iteration's steps from the base weights; leaves the trained model loaded. Returns the metrics of each."""
        import torch

        from sami_train.checkpoint import load_checkpoint, save_checkpoint

        recipe = self.recipe
        model = self._model(self.source, fresh=True)
        model.train()
        if recipe.freeze_embeddings:
            model.get_input_embeddings().weight.requires_grad_(False)
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if wrong := sorted({str(p.dtype) for p in parameters.values()} - {"torch.float32"}):
            raise UserError(f"the master weights of '{self.source}' are {wrong[0]}; training needs them in float32")
        optimizer = torch.optim.AdamW(
            list(parameters.values()),
            lr=recipe.learning_rate,
            betas=(recipe.adam_beta1, recipe.adam_beta2),
            eps=recipe.adam_epsilon,
            weight_decay=recipe.weight_decay,
        )
        batches = [examples[i : i + recipe.batch_size] for i in range(0, len(examples), recipe.batch_size)]
        metrics_file = place / "metrics.jsonl"
        start = load_checkpoint(place / "checkpoint", parameters, optimizer)
        history = list(read_rows(metrics_file))[:start]
        metrics_file.unlink(missing_ok=True)
        append_rows(metrics_file, history)
        for step in range(start, len(batches)):
            began = time.monotonic()
            figures, tokens = self._gradients(model, batches[step], label, step, len(batches))
            norm = float(torch.nn.utils.clip_grad_norm_(list(parameters.values()), recipe.max_grad_norm))
            if not math.isfinite(norm):
                raise UserError(
                    f"{place}: the gradient of step {step + 1} is not finite; lower learning_rate and run again"
                )
            rate = recipe.learning_rate_at(step, len(batches))
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row: dict[str, float] = {
                "iteration": number,
                "step": step + 1,
                "learning_rate": rate,
                **figures,
                "grad_norm": norm,
            }
            row.update({f"filtered/{rule}": count for rule, count in filtered.items()})
            row["tokens_per_second"] = tokens / (time.monotonic() - began)
            append_rows(metrics_file, [row])
            history.append(row)
            self.progress(label, step + 1, len(batches), f"loss {row['loss']:.3f}")
            if recipe.save_steps and (step + 1) % recipe.save_steps == 0 and step + 1 < len(batches):
                save_checkpoint(place / "checkpoint", parameters, optimizer, step + 1)
        model.eval()
        return history

    def _gradients(
        self, model: Any, batch: Sequence[Example], label: str, step: int, steps: int
    ) -> tuple[dict[str, float], int]:
        """Accumulate the gradient of the batch's mean loss, a query at a time. Returns mean metrics and the tokens run."""
        from sami_train.logprobs import response_logprobs
        from sami_train.loss import contrast_metrics, sami_loss

        rows: list[dict[str, float]] = []
        tokens = 0
        for example in batch:
            matrix = response_logprobs(model, example.prompt_ids, example.response_ids)
            loss = sami_loss(matrix)
            if not math.isfinite(loss.item()):
                raise UserError(
                    f"{self.folder}: the loss of query '{example.query_id}' is not finite in step {step + 1}; "
                    "finished iterations are kept; lower learning_rate or leave that query out"
                )
            (loss / len(batch)).backward()
            lengths = [len(ids) for ids in example.response_ids]
            tokens += sum(len(ids) + sum(lengths) for ids in example.prompt_ids)
            rows.append({**contrast_metrics(matrix), "completions/mean_length": statistics.fmean(lengths)})
            self.progress(label, step, steps, f"query {len(rows)}/{len(batch)}")
        return {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}, tokens

    # Measuring on unseen queries

    def _measure(self, examples: Sequence[Example], file: Path, source: Source) -> dict[str, Any] | None:
        """The contrast of a model that is not trained yet, measured once and kept in `file`."""
        if len(examples) < 2:
            return None
        if known := read_json_file(file):
            return known
        self._model(source)
        figures = self._contrast_figures(examples)
        write_json(file, figures)
        return figures

    def _contrast_figures(self, examples: Sequence[Example]) -> dict[str, Any]:
        """Mean contrastive loss (nats) and accuracy of the loaded model, with 95% t intervals over queries."""
        import torch

        from sami_train.logprobs import response_logprobs
        from sami_train.loss import contrast_metrics

        assert self._loaded is not None
        with torch.inference_mode():
            rows = [
                contrast_metrics(response_logprobs(self._loaded[1], e.prompt_ids, e.response_ids)) for e in examples
            ]
        losses = [row["loss"] for row in rows]
        accuracies = [(row["accuracy/row"] + row["accuracy/col"]) / 2 for row in rows]
        low, high = _mean_interval(accuracies)
        return {
            "loss": statistics.fmean(losses),
            "loss_ci": _mean_interval(losses),
            "accuracy": statistics.fmean(accuracies),
            "accuracy_ci": [max(0.0, low), min(1.0, high)],
        }

    # Models

    def _model(self, source: Source, *, fresh: bool = False) -> Any:
        """The model of `source` in float32; the one in memory when it is that one and untouched by training."""
        from sami_train.models import load_model, load_tokenizer

        key = str(source)
        if self._tokenizer is None:
            self._tokenizer = load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self.progress("loading", 0, 1, key if source.kind != "folder" else Path(key).name)
            model = load_model(source, device=self.device, trust_remote_code=self.trust_remote_code)
            self._loaded = (key, model)
        model = self._loaded[1]
        if fresh:
            self._loaded = ("being trained", model)
        return model

    def _save_model(self, target: Path) -> None:
        """Write the trained model beside `target` and rename it, so that a half-written one never bears the name."""
        assert self._loaded is not None
        work = target.with_name(f".{target.name}-being-written")
        shutil.rmtree(work, ignore_errors=True)
        try:
            self._loaded[1].save_pretrained(work)
            self._tokenizer.save_pretrained(work)
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        except OSError as error:
            shutil.rmtree(work, ignore_errors=True)
            raise UserError(
                f"{target}: the model cannot be written ({error.strerror}); free some space and run again"
            ) from error
        shutil.rmtree(target.parent / "checkpoint", ignore_errors=True)
        self._loaded = (str(target), self._loaded[1])


def _raw_row(contrast: Contrast, side: int, generated: Any, prompt_ids: list[int]) -> dict[str, Any]:
    return {
        "query_id": contrast.query.id,
        "task": contrast.query.task,
        "side": side,
        "constitution": contrast.constitutions[side].id,
        "prompt": generated.prompt.text,
        "prompt_truncated": generated.prompt.truncated,
        "prompt_ids": prompt_ids,
        "response_ids": generated.ids,
        "text": generated.text,
        "finish_reason": generated.finish_reason,
    }


def _mean_interval(values: Sequence[float]) -> list[float]:
    """Student's t interval of a mean at 95%. Two values at least."""
    from scipy.stats import t

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return [statistics.fmean(values) - half, statistics.fmean(values) + half]


def read_json_file(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None where there is no file. Raises UserError when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        raise UserError(f"{path}: this file is damaged; delete it and run again, the rest is kept") from None
    return value if isinstance(value, dict) else None
