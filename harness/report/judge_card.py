"""The card of a judge that was held against known labels, as `harness judge validate` prints it."""

from __future__ import annotations

from harness.report.content import cost_section
from harness.report.judges import asked_otherwise, unscored_said, worth_sentence
from harness.report.words import NONE, Results, Row, Section, Table, counted, limits, number, percent, rate

_SHARES = (
    ("both orders agree", "position_consistency", "n_pairs", "pairs"),
    ("prefers the first", "share_first", "n_decided", "decided verdicts"),
    ("prefers the longer", "longer_wins", "n_longer", "decided pairs of unlike length"),
    ("repeats agree", "repeat_agreement", "n_repeated", "pairs and orders judged again"),
    ("ties", "ties", "n_scored", "scored verdicts"),
    ("unscored", "unscored_rate", "n", "verdicts"),
)
_AGREEMENT = (
    ("accuracy", "accuracy", "n", "labelled pairs"),
    ("sensitivity", "sensitivity", "n_a", "pairs with a the better"),
    ("specificity", "specificity", "n_b", "pairs with b the better"),
)


def judge_card_sections(card: Results) -> list[Section]:
    """The card in reading order: who was asked about what, how far it agrees, how it behaves, what it cost."""
    parts = (_about(card), _agreement(card), _behaviour(card), cost_section(card))
    return [part for part in parts if part.sentences or part.tables]


def _about(card: Results) -> Section:
    labels = card["labels"]
    prompts = ", ".join(f"{t['name']} ({t['hash'][:8]})" for t in card["templates"].values())
    repeats = f", {card['repeats']} times" if card["repeats"] > 1 else ""
    sentences = [
        f"Judge: {card['judge']}" + (f" ({card['model']})" if card["model"] != card["judge"] else "")
        + f", style {card['style']}, form {card['form']}, judge prompt {prompts}.",
        f"Reference: {card['reference']}. {counted(sum(labels.values()), 'pair')} on {counted(card['n_queries'], 'query')}, "
        f"each in both orders{repeats}: {labels['a']} with a the better, {labels['b']} with b, {labels['tie']} ties.",
    ]  # fmt: skip
    if card["n_identical"]:
        sentences.append(
            f"Of {counted(card['n_identical'], 'verdict')} the two texts are the same: ties without a question."
        )
    return Section("Judge card", (*sentences, *family_sentences(card["judge"], card["same_family"])))


def family_sentences(judge: str, akin: Row) -> list[str]:
    """What a reader must know of a judge that judges its own kin."""
    return [f"Same family: {judge} judges {name}; {how}." for name, how in akin.items()]


def _agreement(card: Results) -> Section:
    found = card.get("agreement") or {}
    cells = [
        (what, rate(found.get(key), *limits(found, f"{key}_ci")), str(found.get(n, 0)), of)
        for what, key, n, of in _AGREEMENT
    ]
    if found.get("n_by_probability"):
        likelier = rate(found["by_probability"], *limits(found, "by_probability_ci"))
        of = "decided pairs, both orders' probabilities together"
        cells.append(("the likelier is right", likelier, str(found["n_by_probability"]), of))
    kappa = number(found.get("kappa"), found.get("kappa_ci"), digits=2)
    cells.insert(1, ("Cohen's kappa", kappa, str(found.get("n", 0)), "labelled pairs"))
    columns = ("agreement", "value", "n", "of")
    remark = (
        "A pair's verdict is that of both orders together: they decide alike, or it is a tie. Accuracy and kappa are over a, b "
        "and tie; sensitivity and specificity over pairs that the reference decides, a tie of the judge counting half. A coin has "
        "kappa 0, and one half of both."
    )
    notes = [found["note"]] if found.get("note") else []
    worth = found.get("worth") or {}
    if worth.get("labels") is not None:
        notes.append(f"In a win rate, {worth_sentence(worth)}.")
    return Section(
        "Agreement with the reference", (), (Table(columns, cells, numbers=frozenset({"n"})),), (remark, *notes)
    )


def _behaviour(card: Results) -> Section:
    intervals = card["intervals"]
    cells = [
        (what, rate(card.get(key), *limits(intervals, key)), str(card.get(n, 0)), of)
        for what, key, n, of in _SHARES
        if key != "repeat_agreement" or card.get("n_repeated")
    ]
    columns = ("behaviour", "value", "n", "of")
    reasons = ", ".join(f"{reason} {n}" for reason, n in card["unscored_reasons"].items())
    remarks = [
        f"Spearman's correlation of a's score with a's extra words: {number(card.get('length_spearman'), digits=2)}.",
        f"Intervals are {percent(card['level'], 0)}, over queries. A judge without a lean prefers the first, and the longer, "
        "in half of what it decides.",
        *([f"Unscored: {reasons}."] if reasons else []),
        *(f"Unscored {told}." for told in unscored_said(card)),
        *asked_otherwise("the judge", card),
    ]
    table = Table(columns, cells, numbers=frozenset({"n"}))
    return Section("How it judges", (), (table,), tuple(remarks)) if cells else Section(NONE)
