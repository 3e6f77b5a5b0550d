"""What a file of the authors' layout is about follows from its folder and its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.paper.layout import Found, Place, find, place_of
from sami_train.errors import UserError

HH = "experiments/hh-rlhf/results_fixed/win_rates"
TLDR = "experiments/tldr/results_fixed/win_rates"
LLAMA = "experiments/tldr/results_fixed/win_rates_llama_70b"
MI = "results_fixed/mutual_information_clean"


def place(path: str) -> Place | None:
    kind = "information" if "mutual_information" in path else "verdicts"
    return place_of(Found(kind, Path("/x"), Path("/x") / path))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{HH}/0-vs-instruct-helpful.json", Place("hh-rlhf", "mistral", 0, "instruct", "helpful")),
        (f"{HH}/3-vs-base-epoch-0.38-harmless.json", Place("hh-rlhf", "mistral", 3, "base", "harmless")),
        (
            f"{TLDR}/2-vs-base-epoch-0.25-from-epoch-0.12-mixtral-mistral-constitution-temperature-0.0.json",
            Place("tldr", "mixtral", 2, "base", writer="weak"),
        ),
        (
            f"{TLDR}/3-vs-base-mistral-opus-constitution-temperature-0.0.json",
            Place("tldr", "mistral", 3, "base", writer="strong"),
        ),
        (
            f"{TLDR}/0-vs-instruct-mistral-opus-constitution-temperature-0.0.jsonl",
            Place("tldr", "mistral", 0, "instruct", writer="strong"),
        ),
        (
            f"{LLAMA}/1vs0from0.json",
            Place("tldr-diverse", "llama3-70b", 1, "base", principles="learned", reasoning=True),
        ),
        (
            f"{LLAMA}/3vs0from0.51OOD.json",
            Place("tldr-diverse", "llama3-70b", 3, "base", principles="held_out", reasoning=True),
        ),
        (
            f"{LLAMA}/2vs0from0.25-no-cot-OOD.json",
            Place("tldr-diverse", "llama3-70b", 2, "base", principles="held_out", reasoning=False),
        ),
        (
            f"experiments/hh-rlhf/{MI}/base-mutual-information-helpful.json",
            Place("hh-rlhf", "mistral", 0, subset="helpful"),
        ),
        (
            f"experiments/tldr/{MI}/iteration-3-mixtral-opus-constitution-mutual-information.json",
            Place("tldr", "mixtral", 3, writer="strong"),
        ),
        (
            f"experiments/hh-rlhf/{MI}/mistral-instruct-mutual-information-mutual-information-harmless.json",
            Place("hh-rlhf", "mistral", None, subset="harmless"),
        ),
    ],
)
def test_a_name_says_what_it_is_about(path: str, expected: Place) -> None:
    assert place(path) == expected


@pytest.mark.parametrize(
    "path",
    [
        f"{HH}/2-vs-base-epoch-0.25-sanity-check-helpful.json",
        f"{TLDR}/3-vs-base-epoch-0.25-from-epoch-0.25-mistral-mistral-constitution-temperature-0.0-v3.json",
        f"{LLAMA}/3vsinstruct_v2.json",
        f"{LLAMA}/1vs0.json",
        "experiments/hh-rlhf/results/win_rates/0vsQ-helpful_seed_2.json",
        f"{TLDR}/anything.json",
    ],
)
def test_a_re_run_or_a_later_version_belongs_to_no_cell(path: str) -> None:
    assert place(path) is None


def test_files_are_found_by_their_folders(tmp_path: Path) -> None:
    wanted = {
        "experiments/tldr/prompts.py": "prompts",
        "experiments/tldr/constitutions_mistral/0.json": "constitutions",
        "experiments/tldr/results/responses/base.json": "responses",
        f"{HH}/x.json": "verdicts",
        f"experiments/tldr/{MI}/x.json": "information",
    }
    others = [
        "experiments/tldr/train.py",
        "experiments/other/results/win_rates/x.json",
        ".git/tldr/win_rates/x.json",
        f"{HH}/x.png",
    ]
    for path in [*wanted, *others]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert {file.path.relative_to(tmp_path).as_posix(): file.kind for file in find([tmp_path])} == wanted
    assert next(iter(find([tmp_path]))).name.startswith(f"{tmp_path.name}/experiments/")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        list(find([tmp_path / "sami"]))
