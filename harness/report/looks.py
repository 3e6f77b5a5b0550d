"""What a report says of its n: an unfinished run, a rule for stopping, a limit that was raised after results were shown."""

from __future__ import annotations

from harness.report.words import Results, Row, counted, joined, percent


def looks_said(results: Results) -> list[str]:
    """A sentence for each that applies; none for a run whose n was fixed before."""
    found = []
    if interim := results.get("interim"):
        found.append(
            f"{interim['n']} of {interim['of']} queries, unplanned look: this run is not finished. Its win rates, steerability and "
            "gaps have intervals and p values that hold whenever one looks (betting)."
        )
    if stopped := results.get("stopped"):
        found.append(_stopped_said(stopped))
    if looked := results.get("looked"):
        before = joined([f"{look['n']} ({str(look['created'])[:16].replace('T', ' ')})" for look in looked])
        found.append(
            f"The number of queries was raised after results were shown, of n = {before}. A reading at a fixed n takes no account "
            "of that: raised once, it finds an effect that is not there in about 9% of cases in the place of 5%. "
            "statistics.stop plans looks beforehand."
        )
    return found


def _stopped_said(stopped: Row) -> str:
    rule, n = rule_words(stopped["rule"]), counted(stopped["n"], "query")
    which = f" (decision {stopped['look']} of {stopped['looks']} at most)"
    if stopped["decided"]:
        return f"Stopped after {n} of {stopped['of']}{which} by the rule in the specification: {rule}."
    return f"The rule for stopping was not met by the planned end, {n} of {stopped['of']}{which}: {rule}."


def rule_words(rule: Row) -> str:
    """`statistics.stop` in words."""
    if rule.get("looks"):
        at = joined([str(n) for n in rule["looks"]])
        return f"looks at {at} queries (O'Brien-Fleming), each interval at the critical value of its look"
    if rule.get("anytime"):
        return "as soon as the betting interval, which holds at every n, leaves one half"
    width = percent(rule["half_width"]).replace("%", " points")
    return f"an interval of at most ± {width}, with {rule.get('at_least') or 30} queries at the least"
