"""The report's tables about judges: their cards, agreements and noise, and what corrections make of win rates."""

from __future__ import annotations

from harness.report.words import (
    NONE,
    Results,
    Row,
    Section,
    Table,
    counted,
    grouped,
    interval_of,
    limits,
    notes_of,
    number,
    percent,
    pooled_rows,
    rate,
    rows_of,
    split_words,
    versus,
)


def judges_section(results: Results) -> Section:
    cards = results.get("judges") or {}
    columns = ("judge", "kind", "model", "both orders agree", "prefers the first", "the longer", "ties", "unscored")
    cells = [
        (
            name,
            str(card.get("kind", NONE)),
            str(card.get("model") or NONE),
            _of(card, "position_consistency", "n_pairs"),
            percent(card.get("share_first")),
            percent(card.get("longer_wins")),
            percent(card.get("ties")),
            percent(card.get("unscored_rate")),
        )
        for name, card in cards.items()
    ]
    quality = results.get("quality") or {}
    verdict = "passed" if quality.get("passed") else "FAILED"
    sentences = (
        (
            f"Unscored verdicts{_by_worst(quality)}, missing ones included: {percent(quality['unscored_rate'])} "
            f"(limit {percent(quality.get('max_unscored'))}): {verdict}.",
        )
        if quality.get("unscored_rate") is not None
        else ()
    )
    tables = (Table(columns, cells, numbers=frozenset(columns[3:])),) if cells else ()
    remarks = ["A judge without a lean prefers the answer shown first, and the longer one, in half of what it decides."]
    remarks += [
        f"{name}, {versus(row)}, {split_words(row['split'])}: where the other order says that it lost, {row['a']}'s verdicts are "
        f"unscored in {percent(of['a']['unscored'] / (of['a']['n'] or 1), 0)} of {of['a']['n']}, {row['b']}'s in "
        f"{percent(of['b']['unscored'] / (of['b']['n'] or 1), 0)} of {of['b']['n']}."
        for (name, *_), group in grouped(rows_of(results, "comparisons"), "judge", "a", "b", "principle_set").items()
        for row in pooled_rows(group)
        if (of := row.get("unscored_losses")) and of["a"]["unscored"] + of["b"]["unscored"]
    ]
    for name, card in cards.items():
        if reasons := card.get("unscored_reasons"):
            remarks.append(f"Unscored by {name}: {', '.join(f'{reason} {n}' for reason, n in reasons.items())}.")
            remarks += [f"{name}, {told}." for told in unscored_said(card)]
        remarks += asked_otherwise(name, card)
        if card.get("n_repeated"):
            remarks.append(
                f"Asked again, {name} says the same {percent(card['repeat_agreement'])} of the time "
                f"({card['n_repeated']} pairs and orders)."
            )
        worth = (card.get("agreement") or {}).get("worth") or {}
        if worth.get("labels") is not None:
            remarks.append(f"Of {name}, {worth_sentence(worth)}.")
        remarks += [
            f"Same family: {name} judges {model}; {how}." for model, how in (card.get("same_family") or {}).items()
        ]
    noise = _judge_noise(results)
    if noise.rows:
        remarks.append(
            "Same score: how often two judgings of a pair give it the same score; sd: how far apart they are, in points. "
            "Of the variance: the judge's own part in the spread of the queries' scores, as they are and had each pair "
            "been judged once. The interval's unit is the query all the same."
        )
    tables = (*tables, *_agreements(cards), *([noise] if noise.rows else ()))
    return Section("Judges", sentences, tables, tuple(remarks) if cells else ())


def unscored_said(card: Row) -> list[str]:
    """The commonest reasons for no verdict as they were told, with their counts: those that say more than a word."""
    return [
        f"{counted(one['n'], 'time')}: {one['said']}" for one in card.get("unscored_said") or () if " " in one["said"]
    ]


def asked_otherwise(name: str, card: Row) -> list[str]:
    """What a reader of a card should know of how the judge was asked."""
    found = []
    if card.get("left_out"):
        found.append(f"Requests to {name} left out: {', '.join(card['left_out'])}.")
    if card.get("n_repeated") and card.get("draws") is False:
        found.append(
            f"{name[:1].upper()}{name[1:]} does not draw its answers (form choice, or temperature 0), so that its repeats tell "
            "nothing of its noise."
        )
    return found


def _by_worst(quality: Row) -> str:
    return f" of the worst judge, {quality['judge']}" if quality.get("judge") else ""


def _of(card: Row, share: str, n: str) -> str:
    return NONE if card.get(share) is None else f"{percent(card[share])} of {card.get(n, 0)}"


def _agreements(cards: dict[str, Row]) -> list[Table]:
    columns = ("judge", "of", "accuracy", "kappa", "sensitivity", "specificity", "n")
    by_reference: dict[str, list[tuple[str, ...]]] = {}
    for name, card in cards.items():
        agreement = card.get("agreement") or {}
        kinds = agreement.get("by_kind") or ({"win_rate": agreement} if agreement else {})
        for kind, found in kinds.items():
            accuracy, sensitivity, specificity = (
                rate(found.get(key), *limits(found, f"{key}_ci"), digits=0)
                for key in ("accuracy", "sensitivity", "specificity")
            )
            kappa = number(found.get("kappa"), found.get("kappa_ci"), digits=2)
            cells = (name, KINDS.get(kind, kind), accuracy, kappa, sensitivity, specificity, str(found.get("n", 0)))
            by_reference.setdefault(agreement["reference"], []).append(cells)
    return [
        Table(columns, rows, f"Agreement with the programs of the judge {reference}, by pair", frozenset(columns[2:]))
        for reference, rows in by_reference.items()
    ]


KINDS = {"win_rate": "win rates", "steerability": "steerability", "swapped": "the control"}


def worth_sentence(worth: Row) -> str:
    """``1,000 verdicts are worth 12 labels [0, 40] beside the 250 there are``"""
    low, high = worth["labels_ci"]
    return (
        f"{worth['n_verdicts']:,} verdicts are worth {worth['labels']:,.0f} labels [{low:,.0f}, {high:,.0f}] beside the "
        f"{worth['n_labelled']:,} there are"
    )


def corrections_section(results: Results) -> Section:
    columns = (
        "task",
        "split",
        "as judged",
        "post-stratified",
        "prediction-powered",
        "n",
        "labelled",
    )
    tables = []
    groups = grouped(rows_of(results, "corrections"), "a", "b", "principle_set", "judge", "reference")
    for (_, _, principle_set, judge, reference), group in groups.items():
        rows = [
            (
                row["task"],
                split_words(row["split"]),
                *(rate(row.get(key), *limits(row, f"{key}_ci")) for key in ("win_rate", "post_stratified", "ppi")),
                str(row["n"]),
                str(row["n_labelled"]),
            )
            for row in group
        ]
        heading = f"{versus(group[0])} · principles: {principle_set} · judge: {judge}, corrected by {reference}"
        tables.append(Table(columns, rows, heading, frozenset(columns[2:])))
    remark = (
        "What the win rate would be by the reference, from the queries that both judged (labelled) and those that the judge "
        "alone did (n), where the labelled are a random sample. post-stratified: the mean label at each verdict, weighted by how "
        "often the judge gives it; prediction-powered: the judge's mean plus its mean error. Tasks are corrected one by one and "
        "weighted by their queries. Verdicts are worth the labels that would narrow the labels' own interval as much."
    )
    worth = [
        f"{versus(row)}, {split_words(row['split'])}: of {row['judge']}, {worth_sentence(row['worth'])}."
        for group in groups.values()
        for row in pooled_rows(group)
        if (row.get("worth") or {}).get("labels") is not None
    ]
    notes = notes_of(rows_of(results, "corrections"), "a", "b", "judge", "task", "split")
    return Section("Win rates corrected for the judge's errors", (), tuple(tables), (remark, *worth, *notes))


def _judge_noise(results: Results) -> Table:
    """What judging again tells, over all tasks; without rows where each pair was judged once."""
    columns = ("judge", "comparison", "split", "same score", "sd, points", "of the variance", "judged once", "pairs")
    cells = [
        (
            row["judge"],
            versus(row),
            split_words(row["split"]),
            percent(noise.get("agreement")),
            NONE if noise.get("sd") is None else f"{100 * noise['sd']:.1f}",
            rate(noise.get("share"), noise.get("share_low"), noise.get("share_high"), digits=0),
            percent(noise.get("share_once"), 0),
            str(noise.get("n_pairs") or 0),
        )
        for group in grouped(rows_of(results, "comparisons"), "judge", "a", "b", "principle_set").values()
        for row in pooled_rows(group)
        if (noise := row.get("judge_noise"))
    ]
    return Table(columns, cells, "Judged more than once", frozenset(columns[3:]))


def rank_stability_section(results: Results) -> Section:
    """How far every two judges agree, on the queries that both have scored."""
    columns = ("comparison", "split", "by 1", "by 2", "same outcome", "kappa", "order", "n")
    tables = []
    groups = grouped(rows_of(results, "rank_stability"), "judge_1", "judge_2", "principle_set")
    for (one, two, principle_set), group in groups.items():
        cells = [
            (
                versus(pair),
                split_words(row["split"]),
                *(rate(pair.get(f"win_rate_{i}"), *limits(pair, f"win_rate_{i}_ci")) for i in (1, 2)),
                rate(pair.get("agreement"), *interval_of(pair), digits=0),
                number((pair.get("kappa") or {}).get("kappa"), interval_of(pair.get("kappa") or {}), digits=2),
                pair.get("order") or "unclear",
                str(pair.get("n")),
            )
            for row in group
            for pair in row["pairs"]
        ]
        ranks = "; ".join(
            f"{split_words(row['split'])} {number(row['kendall_tau'], digits=2)} ({row['n_models']} models)"
            for row in group
            if row.get("kendall_tau") is not None
        )
        heading = f"{one} (1) and {two} (2) · principles: {principle_set}" + (f" · tau-b: {ranks}" if ranks else "")
        tables.append(Table(columns, cells, heading, frozenset((*columns[2:6], "n"))))
    remark = (
        "Over the queries that both judges scored: their win rates, how often a query has the same outcome (win, tie, loss), "
        "Cohen's kappa, and the order of the two models: same or flips where both intervals exclude one half, else unclear. "
        "tau-b: Kendall's correlation of the models' ranks."
    )
    return Section("Rank stability", (), tuple(tables), (remark,))
