"""The judge that cannot be wrong: programs score how far a text follows a constitution of checkable principles."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from harness.judges.checks import score, validate_check, weight
from sami_train.constitutions import Constitution, Element, Principle
from sami_train.copying import without_copied
from sami_train.errors import UserError

Outcome = Literal["a", "b", "tie"]

TIE_TOLERANCE = 1e-9
"""Scores closer than this tie: far below any step of a checker, far above rounding."""


def compare(
    constitution: Constitution,
    text_a: str,
    text_b: str,
    *,
    shown: Iterable[str] = (),
    principle_set: str = "",
) -> tuple[Outcome, dict[str, Any]]:
    """Which text follows the constitution better, and the scores that say so.

    Text that is copied from the constitution, or from `shown`, does not count (`sami_train.copying`). Exact and symmetric:
    swapping the texts swaps the outcome. Texts that score the same tie.

    Args:
        constitution: principles that each carry a check.
        text_a: one text.
        text_b: the other.
        shown: what else the texts' writers had before them, copies of which do not count either.
        principle_set: the set's name, for error messages.

    Returns:
        The outcome, and ``{"score_a", "score_b", "principles": {id: {"follows", "a", "b"}}, "whole"}``. A principle's scores
        are those of the side that the constitution takes, so 1 always means following. `whole` has outcome, score_a and
        score_b with the copied text left in.
    """
    sources = [*constitution.sentences(), *shown]
    own = [without_copied(text, sources) for text in (text_a, text_b)]
    scores_a, scores_b = (_element_scores(constitution, text, principle_set) for text in own)
    score_a, score_b = _mean(scores_a), _mean(scores_b)
    whole_a, whole_b = (follow_score(constitution, text, principle_set=principle_set) for text in (text_a, text_b))
    principles = {
        element.principle.id: {"follows": element.follows, "a": a, "b": b}
        for element, a, b in zip(constitution.elements, scores_a, scores_b, strict=True)
    }
    whole = {"outcome": _outcome(whole_a, whole_b), "score_a": whole_a, "score_b": whole_b}
    details = {"score_a": score_a, "score_b": score_b, "principles": principles, "whole": whole}
    return _outcome(score_a, score_b), details


def _outcome(score_a: float, score_b: float) -> Outcome:
    return "tie" if abs(score_a - score_b) < TIE_TOLERANCE else "a" if score_a > score_b else "b"


def satisfied_by_copy(principle: Principle) -> bool:
    """Whether the definition's own text follows it: a response that copies it scores above 1/2 on its check.

    Checks of length are left out, since a definition is a short text.
    """
    check = principle.check
    return check is not None and check.name != "word_count" and score(check, principle.definition) > 0.5


def copy_findings(principles: Iterable[Principle]) -> list[str]:
    """A sentence for each principle that `satisfied_by_copy` is true of. Raises UserError: a check cannot run."""
    found = "a copy of its own definition passes its check; reword it so that it does not show the feature"
    return [f"{principle.id}: {found}" for principle in principles if satisfied_by_copy(principle)]


def follow_score(constitution: Constitution, text: str, *, principle_set: str = "") -> float:
    """Mean over the elements of the check's score, or of 1 minus it where the constitution takes the antithesis.

    Both are taken in proportion to `weight`, so that a text without words follows neither side: nothing to read scores 0.

    Raises:
        UserError: a principle has no check, or one that cannot run.
    """
    return _mean(_element_scores(constitution, text, principle_set))


def require_checks(principles: Iterable[Principle], *, principle_set: str = "") -> None:
    """Raise UserError unless every principle has a check that can run; meant for before anything is generated."""
    for principle in principles:
        if principle.check is None:
            raise _no_check(principle, principle_set)
        try:
            validate_check(principle.check)
        except UserError as error:
            raise UserError(f"principle '{principle.id}'{_of(principle_set)}: {error}") from error


def _element_scores(constitution: Constitution, text: str, principle_set: str) -> list[float]:
    if not constitution.elements:
        raise UserError("the constitution is empty; the verifiable judge needs at least one principle")
    return [_element_score(element, text, principle_set) for element in constitution.elements]


def _element_score(element: Element, text: str, principle_set: str) -> float:
    if element.principle.check is None:
        raise _no_check(element.principle, principle_set)
    value = score(element.principle.check, text)
    return (value if element.follows else 1 - value) - (1 - weight(text)) / 2


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def _no_check(principle: Principle, principle_set: str) -> UserError:
    return UserError(
        f"the verifiable judge needs a check on principle '{principle.id}'{_of(principle_set)}, which has none; "
        "add 'check:' to it in the set's file, or use an llm judge"
    )


def _of(principle_set: str) -> str:
    return f" of the set '{principle_set}'" if principle_set else ""
