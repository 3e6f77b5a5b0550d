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
        mean_over_pairs,
        position_bias,
        repeat_agreement,
    )
    from harness.stats.correction import (
        Labels,
        Part,
        PostStratified,
        PredictionPowered,
        RoganGladen,
        Worth,
        pooled,
        post_stratified,
        ppi_mean,
        rogan_gladen,
        worth_in_labels,
    )
    from harness.stats.information import Information, infonce, infonce_responses, own_likeliest, sami_repo
    from harness.stats.length import (
        AdjustedWinRate,
        LengthGlm,
        LengthStratified,
        LengthSummary,
        adjusted_win_rate,
        echo_adjusted,
        length_glm,
        length_stratified,
        length_summary,
        style_adjusted,
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
    from harness.stats.power import (
        expected_half_width,
        minimum_detectable_effect,
        principles_floor,
        principles_half_width,
        required_n,
        score_sd,
    )
    from harness.stats.principles import (
        PrinciplesInterval,
        WelchGap,
        principles_difference,
        principles_interval,
        welch_gap,
    )
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
    "AdjustedWinRate",
    "BradleyTerry",
    "ClusterMeans",
    "Information",
    "JudgeAgreement",
    "JudgeShare",
    "Kappa",
    "Labels",
    "LengthGlm",
    "LengthStratified",
    "LengthSummary",
    "PairedDifference",
    "PairedTable",
    "Part",
    "PositionBias",
    "PostStratified",
    "PredictionPowered",
    "PrinciplesInterval",
    "RankedModel",
    "RoganGladen",
    "ScoreCounts",
    "Sequential",
    "StopRule",
    "TieRules",
    "UnusableScores",
    "WelchGap",
    "WinRate",
    "WinRateMatrix",
    "Worth",
    "adjusted_win_rate",
    "betting_interval",
    "betting_p",
    "bradley_terry",
    "cluster_means",
    "cohens_kappa",
    "echo_adjusted",
    "enough_width",
    "expected_half_width",
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
    "mean_over_pairs",
    "minimum_detectable_effect",
    "newcombe_interval",
    "obrien_fleming",
    "own_likeliest",
    "paired_difference",
    "paired_table",
    "pooled",
    "position_bias",
    "post_stratified",
    "ppi_mean",
    "principles_difference",
    "principles_floor",
    "principles_half_width",
    "principles_interval",
    "repeat_agreement",
    "required_n",
    "rogan_gladen",
    "sami_repo",
    "score_sd",
    "sequential_rate",
    "sign_flip_p",
    "style_adjusted",
    "tie_rules",
    "welch_gap",
    "win_rate",
    "win_rate_matrix",
    "worth_in_labels",
]

_MODULES = {
    "_arrays": ("UnusableScores",),
    "agreement": (
        "JudgeAgreement",
        "Kappa",
        "PositionBias",
        "cohens_kappa",
        "judge_agreement",
        "mean_over_pairs",
        "position_bias",
        "repeat_agreement",
    ),
    "correction": (
        "Labels",
        "Part",
        "PostStratified",
        "PredictionPowered",
        "RoganGladen",
        "Worth",
        "pooled",
        "post_stratified",
        "ppi_mean",
        "rogan_gladen",
        "worth_in_labels",
    ),
    "information": (
        "Information",
        "infonce",
        "infonce_responses",
        "own_likeliest",
        "sami_repo",
    ),
    "length": (
        "AdjustedWinRate",
        "LengthGlm",
        "LengthStratified",
        "LengthSummary",
        "adjusted_win_rate",
        "echo_adjusted",
        "length_glm",
        "length_stratified",
        "length_summary",
        "style_adjusted",
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
        "expected_half_width",
        "minimum_detectable_effect",
        "principles_floor",
        "principles_half_width",
        "required_n",
        "score_sd",
    ),
    "noise": ("JudgeShare", "judge_share"),
    "principles": (
        "PrinciplesInterval",
        "WelchGap",
        "principles_difference",
        "principles_interval",
        "welch_gap",
    ),
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
