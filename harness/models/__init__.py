"""Back ends: how a model of a specification is opened. One file each; `base.py` says what a back end is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sami_train.errors import UserError

if TYPE_CHECKING:
    from harness.models.base import Backend, Budget
    from harness.spec import EngineSpec, ModelSpec
    from sami_train.models import Source


def open_model(
    name: str,
    model: ModelSpec,
    source_of: Callable[[str], Source],
    engine: EngineSpec,
    *,
    budget: Budget | None = None,
) -> Backend:
    """Open a model for use. `source_of` tells where a local model's weights are; `budget` what an API model may cost.

    Raises:
        UserError: the model cannot be loaded, its package is missing, or its key is.
    """
    from harness.spec import model_backend

    kind = "transformers" if model.path is None else model_backend(model.path)
    if kind in ("embedded", "transformers"):
        from harness.models.local import TransformersBackend

        return TransformersBackend(
            name,
            source_of(name),
            device=engine.device,
            dtype=model.dtype or engine.dtype,
            batch_size=engine.batch_size if isinstance(engine.batch_size, int) else None,
            trust_remote_code=model.trust_remote_code,
        )
    assert model.path is not None
    if kind == "recorded":
        from harness.models.recorded import RecordedBackend

        return RecordedBackend(name, model.path)
    from harness.models.families import thinking

    remote = model.path.partition("/")[2]
    options = {
        "base_url": model.base_url,
        "max_connections": model.max_connections,
        "max_retries": model.max_retries,
        "timeout_s": model.timeout_s or (600 if thinking(model.path, model.sampling.reasoning) else 60),
    }
    if kind == "openai":
        from harness.models.openai import OpenAIBackend as Opened
    elif kind == "anthropic":
        from harness.models.anthropic import AnthropicBackend as Opened  # type: ignore[assignment]
    else:
        raise UserError(f"models.{name}: there is no back end '{kind}'")
    opened = Opened(name, remote, model.style, **options)  # type: ignore[arg-type]
    opened.budget = budget
    return opened
