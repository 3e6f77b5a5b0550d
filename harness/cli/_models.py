"""Models named on the command line by their path alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sami_train.errors import UserError

if TYPE_CHECKING:
    from sami_train.prompts import Style


def require_model_to_ask(option: str, path: str, what: str) -> None:
    """Raises UserError for a path of recorded answers, which are there for a run's queries and cannot do `what`."""
    from harness.spec import model_backend

    if model_backend(path) == "recorded":
        raise UserError(
            f"{option}: '{path}' has recorded answers to a run's queries and cannot {what}; name a model that can be asked "
            "(embedded/NAME, a folder, a hub id, openai/NAME, anthropic/NAME)"
        )


def style_of(path: str) -> Style:
    """chat for API models and where there is a chat template, completion elsewhere."""
    from harness.spec import model_backend
    from sami_train.models import check_source, has_chat_template, parse_source

    if model_backend(path) in ("openai", "anthropic"):
        return "chat"
    source = parse_source(path)
    check_source(source)
    has_template = has_chat_template(source)
    if has_template is None:
        raise UserError(
            f"whether '{path}' has a chat template shows only when it is loaded; add --style chat or completion"
        )
    return "chat" if has_template else "completion"
