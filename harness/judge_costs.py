"""How `harness judge validate` pays: the judge, and the model that writes responses where one does, under one limit of cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import costs
from harness.asking import Terms
from harness.plan import is_api
from harness.rows import Generation, Verdict
from harness.spec import ModelSpec
from harness.store import RowFile

if TYPE_CHECKING:
    from harness.judge_validation import Judge

GENERATIONS, VERDICTS = "generations.jsonl", "verdicts.jsonl"
"""The rows in a validation's folder."""


@dataclass(frozen=True)
class Payment:
    """How API models are asked and paid; `batch` and `max_cost` (dollars) are those of `harness.run`."""

    prices: costs.Prices
    batch: bool = False
    max_cost: float | None = None
    writer: ModelSpec | None = None
    """The model that writes the responses; None where they are there."""

    def check(self, judge: Judge) -> None:
        """Raises InvalidCosts for batches where no model is behind an API."""
        if self.batch and not self._api_models(judge):
            who = "the judge is not" if self.writer is None else "neither the judge nor the writer is"
            raise costs.InvalidCosts(f"--batch: {who} behind an API; leave it out")

    def terms(self, judge: Judge, folder: Path, say: Callable[[str], None]) -> Terms:
        """The terms on which to ask now, what was spent in `folder` so far included; `say` is told of batches.

        Raises InvalidCosts for a limit where a price is unknown.
        """
        if self.max_cost is None:
            return Terms(self.batch, say=say)
        models, before = self._api_models(judge), self.spent(judge, folder)
        return Terms(self.batch, costs.allow(self.max_cost, models, before, self.prices), say)

    def spent(self, judge: Judge, folder: Path) -> dict[str, Any]:
        """What the rows in `folder` cost, failed and replaced ones included; fields as of `harness.costs.spent`."""
        models = self._api_models(judge)
        return costs.spent_by({n: (m, self._usages(judge, folder, n)) for n, m in models.items()}, self.prices)

    def _api_models(self, judge: Judge) -> dict[str, ModelSpec]:
        """By the names under which they are open; a writer's is its path, which no name in a specification is."""
        models = {judge.model_name: judge.model}
        if self.writer is not None:
            models[str(self.writer.path)] = self.writer
        return {name: model for name, model in models.items() if is_api(model)}

    def _usages(self, judge: Judge, folder: Path, name: str) -> Iterator[Mapping[str, Any]]:
        if name == judge.model_name:
            verdicts = RowFile(folder / VERDICTS, Verdict).rows()
            yield from (row.usage for row in verdicts if row.judge == judge.name and row.usage)
        else:
            generations = RowFile(folder / GENERATIONS, Generation).rows()
            yield from (row.usage for row in generations if row.model == name and row.usage)
