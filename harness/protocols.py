"""How verdicts become scores: the harness's own rules, and those behind the published tables.

Pure functions of verdict rows, so that one set of judgements can be scored in every way, beside each other. What each
protocol decides is an option with a name:

- `orders`: both answer orders, or one that is drawn at random for each query. GPT-4's recorded verdicts prefer the answer
  shown first on 63% of close dialogue pairs, so that one order adds noise, and a bias where it is not drawn evenly.
- `unscored`: whether a verdict that could not be read is left out, with its pair, or taken for a tie. The reference code
  writes 0.5 for it.
- `ties`: whether a tie is half a win or a loss, by kind of task. Tables 4 to 7 of the paper (summarization) count 0.5 as a
  loss, everything else as a half.
- `repeats`: all judgings of a pair, averaged, or the first one alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, NamedTuple

from harness.judges.llm import Order
from harness.rows import Verdict
from harness.store.fingerprints import fingerprint
from sami_train.errors import UserError, nearest

Ties = Literal["half", "loss"]


@dataclass(frozen=True)
class Protocol:
    """The rules by which the verdicts on a pair become its score for `a`, in [0, 1]."""

    name: str
    orders: Literal["both", "one"] = "both"
    """both: the mean of the two orders; one: a single order, drawn for each query. A judge that saw one is not concerned."""
    unscored: Literal["left_out", "tie"] = "left_out"
    """left_out: a pair of which a verdict is unscored has no score; tie: an unscored verdict counts as a tie does."""
    ties: Ties = "half"
    """What a tie counts: half a win, or nothing."""
    ties_in_summarization: Ties = "half"
    """The same for tasks of the kind summarization."""
    repeats: Literal["all", "first"] = "all"
    """Of several judgings of a pair: the mean of those that have a score, or the first one."""

    def tie_value(self, kind: str) -> float:
        """What a tie is worth in tasks of this kind."""
        return 0.5 if (self.ties_in_summarization if kind == "summarization" else self.ties) == "half" else 0.0


CORRECTED = Protocol("corrected")
PAPER_AND_SWAP = Protocol("paper+swap", unscored="tie", ties_in_summarization="loss", repeats="first")
PAPER = Protocol("paper", orders="one", unscored="tie", ties_in_summarization="loss", repeats="first")

LADDER = (PAPER, PAPER_AND_SWAP, CORRECTED)
"""From the published rules to ours, a step at a time."""
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in (CORRECTED, PAPER, PAPER_AND_SWAP)}


def find_protocol(name: str) -> Protocol:
    """A protocol by its name. Raises UserError with the nearest one."""
    if name not in PROTOCOLS:
        raise UserError(f"there is no protocol '{name}'; {nearest(name, PROTOCOLS)}")
    return PROTOCOLS[name]


class PairScores(NamedTuple):
    """The score of a pair and that of each of its judgings, for `a`, in [0, 1]; None where there is none."""

    score: float | None
    repeats: tuple[float | None, ...]


def pair_scores(
    judgings: Sequence[Mapping[Order, Verdict | None]],
    protocol: Protocol = CORRECTED,
    *,
    kind: str = "dialogue",
    drawn: Order = "ab",
) -> PairScores:
    """What the verdicts on one pair come to.

    Args:
        judgings: for each repeat the verdict in each order that was asked for; None for one that is missing.
        protocol: the rules.
        kind: of the task, dialogue or summarization.
        drawn: the order that counts where the protocol takes one of two (`drawn_order`).

    A verdict that is missing, or that failed before a judge had said anything, is no verdict under any protocol.
    """
    counted = judgings[:1] if protocol.repeats == "first" else judgings
    found = tuple(_judging(verdicts, protocol, protocol.tie_value(kind), drawn) for verdicts in counted)
    scored = [score for score in found if score is not None]
    return PairScores(fmean(scored) if scored else None, found)


def _judging(verdicts: Mapping[Order, Verdict | None], protocol: Protocol, tie: float, drawn: Order) -> float | None:
    """The score of one judging."""
    if protocol.orders == "one" and drawn in verdicts:
        verdicts = {drawn: verdicts[drawn]}
    values = [_value(verdict, protocol, tie) for verdict in verdicts.values()]
    scored = [value for value in values if value is not None]
    return fmean(scored) if scored and len(scored) == len(values) else None


def _value(verdict: Verdict | None, protocol: Protocol, tie: float) -> float | None:
    if verdict is None:
        return None
    if verdict.outcome == "unscored":
        said_something = "error" not in verdict.details
        return tie if protocol.unscored == "tie" and said_something else None
    return {"a": 1.0, "b": 0.0, "tie": tie}[verdict.outcome]


def drawn_order(seed: int, *place: str) -> Order:
    """The order that counts where one is drawn: a fair coin that depends on the seed and the place alone.

    `place` is what names the query in its comparison: models, task, principle set, split, query.
    """
    return "ab" if int(fingerprint(["order", seed, *place])[:8], 16) % 2 == 0 else "ba"
