"""The harness's statistics: pure functions on arrays, imported on first use so that `harness --help` stays fast.

>>> from harness.stats import win_rate
>>> win_rate([1, 1, 0.5, 0, 1, 1, 1, 0, 1, 1, 1, 1]).estimate
0.7916666666666666

The estimators, and why each was chosen, are described in the module of each function.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from harness.stats._arrays import UnusableScores
    from harness.stats.agreement import (
        JudgeAgreement,
        Kappa,
        PositionBias,
        cohens_kappa,
        judge_agreement,
        position_bias,
        repeat_agreement,
    )
    from harness.stats.correction import PredictionPowered, RoganGladen, ppi_mean, rogan_gladen
    from harness.stats.information import Information, infonce, infonce_responses, sami_repo
    from harness.stats.length import (
        LengthGlm,
        LengthStratified,
        LengthSummary,
        length_glm,
        length_stratified,
        length_summary,
    )
    from harness.stats.noise import JudgeShare, judge_share
    from harness.stats.paired import (
        PairedDifference,
        PairedTable,
        gap,
        holm,
        mcnemar_p,
        newcombe_interval,
        paired_difference,
        paired_table,
        sign_flip_p,
    )
    from harness.stats.power import minimum_detectable_effect, required_n
    from harness.stats.ranking import BradleyTerry, RankedModel, WinRateMatrix, bradley_terry, win_rate_matrix
    from harness.stats.sequential import (
        ANYTIME,
        Sequential,
        StopRule,
        betting_interval,
        betting_p,
        enough_width,
        has_decided,
        obrien_fleming,
        sequential_rate,
    )
    from harness.stats.winrate import ClusterMeans, ScoreCounts, TieRules, WinRate, cluster_means, tie_rules, win_rate

__all__ = [
    "ANYTIME",
    "BradleyTerry",
    "ClusterMeans",
    "Information",
    "JudgeAgreement",
    "JudgeShare",
    "Kappa",
    "LengthGlm",
    "LengthStratified",
    "LengthSummary",
    "PairedDifference",
    "PairedTable",
    "PositionBias",
    "PredictionPowered",
    "RankedModel",
    "RoganGladen",
    "ScoreCounts",
    "Sequential",
    "StopRule",
    "TieRules",
    "UnusableScores",
    "WinRate",
    "WinRateMatrix",
    "betting_interval",
    "betting_p",
    "bradley_terry",
    "cluster_means",
    "cohens_kappa",
    "enough_width",
    "gap",
    "has_decided",
    "holm",
    "infonce",
    "infonce_responses",
    "judge_agreement",
    "judge_share",
    "length_glm",
    "length_stratified",
    "length_summary",
    "mcnemar_p",
    "minimum_detectable_effect",
    "newcombe_interval",
    "obrien_fleming",
    "paired_difference",
    "paired_table",
    "position_bias",
    "ppi_mean",
    "repeat_agreement",
    "required_n",
    "rogan_gladen",
    "sami_repo",
    "sequential_rate",
    "sign_flip_p",
    "tie_rules",
    "win_rate",
    "win_rate_matrix",
]

_MODULES = {
    "_arrays": ("UnusableScores",),
    "agreement": (
        "JudgeAgreement",
        "Kappa",
        "PositionBias",
        "cohens_kappa",
        "judge_agreement",
        "position_bias",
        "repeat_agreement",
    ),
    "correction": (
        "PredictionPowered",
        "RoganGladen",
        "ppi_mean",
        "rogan_gladen",
    ),
    "information": (
        "Information",
        "infonce",
        "infonce_responses",
        "sami_repo",
    ),
    "length": (
        "LengthGlm",
        "LengthStratified",
        "LengthSummary",
        "length_glm",
        "length_stratified",
        "length_summary",
    ),
    "paired": (
        "PairedDifference",
        "PairedTable",
        "gap",
        "holm",
        "mcnemar_p",
        "newcombe_interval",
        "paired_difference",
        "paired_table",
        "sign_flip_p",
    ),
    "power": (
        "minimum_detectable_effect",
        "required_n",
    ),
    "noise": ("JudgeShare", "judge_share"),
    "ranking": ("BradleyTerry", "RankedModel", "WinRateMatrix", "bradley_terry", "win_rate_matrix"),
    "sequential": (
        "ANYTIME",
        "Sequential",
        "StopRule",
        "betting_interval",
        "betting_p",
        "enough_width",
        "has_decided",
        "obrien_fleming",
        "sequential_rate",
    ),
    "winrate": (
        "ClusterMeans",
        "ScoreCounts",
        "TieRules",
        "WinRate",
        "cluster_means",
        "tie_rules",
        "win_rate",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
