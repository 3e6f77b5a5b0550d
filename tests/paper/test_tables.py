"""The paper's tables: every cell is there, filled from whatever data has the authors' layout."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from harness.cli import main
from harness.importers.sami_paper import import_sami_paper
from harness.paper.tables import report, tables

CELLS = {
    "Headline": 7,
    "Table 2": 6,
    "Table 3": 8,
    "Table 4": 6,
    "Table 5": 8,
    "Table 6": 6,
    "Table 7": 8,
    "Table 8": 6,
}
CELLS |= {"Table 9": 6, "Mutual": 4}
OPPONENT = "results_fixed/win_rates"


def cells(found: dict[str, Any], title: str, **about: Any) -> list[dict[str, Any]]:
    group = next(g for g in found["groups"] if g["title"].startswith(title))
    return [c for c in group["cells"] if all(c.get(key) == value for key, value in about.items())]


def put(folder: Path, path: str, rows: Any) -> Path:
    file = folder / "experiments" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return file


def verdicts(wins: int, ties: int, losses: int) -> list[list[float]]:
    rng = random.Random(wins)
    rows = [
        [w, rng.randint(5, 99), rng.randint(5, 99)] for w, n in ((1, wins), (0.5, ties), (0, losses)) for _ in range(n)
    ]
    return rng.sample(rows, len(rows))


@pytest.fixture(scope="session")
def shared_paper() -> list[Path]:
    """The authors' files beside the repository."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "paper"
    if not folder.is_dir():
        pytest.skip(f"the shared paper data are absent ({folder})")
    return [folder / "sami", folder / "typo"]


def test_without_data_every_cell_is_there_and_missing() -> None:
    found = tables([])
    assert {title: len(cells(found, title)) for title in CELLS} == CELLS
    assert found["summary"] == {"cells": 65, "agrees": 0, "differs": 0, "missing": 65}
    assert "missing" in report(found)


def test_a_tie_is_a_loss_in_tables_4_to_7_and_half_a_win_in_table_9(tmp_path: Path) -> None:
    name = "1-vs-base-epoch-0.12-mixtral-mistral-constitution-temperature-0.0"
    put(tmp_path, f"tldr/{OPPONENT}/{name}.json", verdicts(142, 20, 88))
    put(tmp_path, "tldr/results_fixed/win_rates_llama_70b/1vs0from0.json", verdicts(159, 20, 71))
    found = tables([tmp_path])
    (weak,) = cells(found, "Table 4", model="mixtral", iteration=1)
    assert (weak["recomputed"], weak["status"], weak["estimator"], weak["n"]) == (
        pytest.approx(56.8),
        "agrees",
        "strict",
        250,
    )
    (diverse,) = cells(found, "Table 9", principles="learned", iteration=1)
    assert (diverse["recomputed"], diverse["status"]) == (pytest.approx(67.6), "agrees")
    assert weak["ci_low"] < 56.8 < weak["ci_high"]


def names_and_wins() -> list[tuple[str, int]]:
    """A file for each cell of Tables 4 to 7, under the names that the authors gave them, with the paper's wins of 250."""
    files = []
    for group in tables([])["groups"][3:7]:
        for cell in group["cells"]:
            writer = {"weak": "mistral", "strong": "opus"}[cell["writer"]]
            n = cell["iteration"]
            epoch = {0: "", 1: "-epoch-0.12", 2: "-epoch-0.25-from-epoch-0.12", 3: "-epoch-0.38-from-epoch-0.25"}[n]
            if (cell["model"], writer) == ("mistral", "opus"):
                epoch = ""
            name = f"{n}-vs-{cell['against']}{epoch}-{cell['model']}-{writer}-constitution-temperature-0.0.json"
            wins = 129 if (cell["paper"], cell["model"]) == (24.8, "mixtral") else round(cell["paper"] * 2.5)
            files.append((name, wins))
    return files


def test_all_28_cells_of_tables_4_to_7_are_found_and_27_agree(tmp_path: Path) -> None:
    for name, wins in names_and_wins():
        put(tmp_path, f"tldr/{OPPONENT}/{name}", verdicts(wins, 3, 247 - wins))
    groups = tables([tmp_path])["groups"][3:7]
    statuses = [cell["status"] for group in groups for cell in group["cells"]]
    assert (len(statuses), statuses.count("agrees"), statuses.count("differs")) == (28, 27, 1)


def test_a_known_error_of_the_paper_differs_with_its_note(tmp_path: Path) -> None:
    put(
        tmp_path,
        f"tldr/{OPPONENT}/0-vs-instruct-mixtral-mistral-constitution-temperature-0.0.json",
        verdicts(129, 0, 121),
    )
    (cell,) = cells(tables([tmp_path]), "Table 5", model="mixtral", iteration=0)
    assert (cell["paper"], cell["recomputed"], cell["status"]) == (24.8, pytest.approx(51.6), "differs")
    assert "51.6" in cell["notes"][0]
    assert "not explained" not in cell["notes"]


def test_a_published_file_that_is_another_cells_differs_with_its_note(tmp_path: Path) -> None:
    put(tmp_path, "tldr/results_fixed/win_rates_llama_70b/1vs0from0.json", verdicts(125, 20, 105))
    found = tables([tmp_path])
    (cell,) = cells(found, "Table 9", principles="learned", iteration=1)
    (other,) = cells(found, "Table 8", principles="learned", iteration=1)
    assert (cell["paper"], cell["recomputed"], cell["status"]) == (67.6, pytest.approx(other["paper"]), "differs")
    assert "1vs0.json" in report(found)
    assert "not explained" not in cell["notes"]


def test_an_unknown_difference_is_said_to_be_unexplained(tmp_path: Path) -> None:
    put(tmp_path, f"tldr/{OPPONENT}/1-vs-base-mistral-opus-constitution-temperature-0.0.json", verdicts(150, 0, 100))
    (cell,) = cells(tables([tmp_path]), "Table 6", model="mistral", iteration=1)
    assert (cell["status"], cell["notes"]) == ("differs", ["not explained"])


def test_figures_that_the_text_cuts_off_agree(tmp_path: Path) -> None:
    rows = [[1, 5, 9]] * 78 + [[0, 5, 9]] * 22 + [[1, 9, 5]] * 28 + [[0, 9, 5]] * 22  # (78 + 56) / 2 = 67
    put(tmp_path, f"hh-rlhf/{OPPONENT}/3-vs-base-epoch-0.38-helpful.json", rows)
    assert cells(tables([tmp_path]), "Headline", subset="helpful", against="base")[0]["status"] == "differs"
    rows[0] = [0, 5, 9]  # 66.5: rounded it would be 67 or 66
    put(tmp_path, f"hh-rlhf/{OPPONENT}/3-vs-base-epoch-0.38-helpful.json", rows)
    (cell,) = cells(tables([tmp_path]), "Headline", subset="helpful", against="base")
    assert (cell["recomputed"], cell["status"]) == (pytest.approx(66.5), "agrees")


def test_of_several_files_the_corrected_results_are_taken(tmp_path: Path) -> None:
    name = "1-vs-base-epoch-0.12-mistral-mistral-constitution-temperature-0.0.json"
    put(tmp_path, f"tldr/results/win_rates/{name}", verdicts(10, 0, 240))
    put(tmp_path, f"tldr/{OPPONENT}/{name}", verdicts(72, 80, 98))
    found = tables([tmp_path])
    (cell,) = cells(found, "Table 4", model="mistral", iteration=1)
    assert (cell["recomputed"], cell["status"]) == (pytest.approx(28.8), "agrees")
    assert cell["notes"] == [
        f"1 more files fit this cell, such as {tmp_path.name}/experiments/tldr/results/win_rates/{name}"
    ]
    assert found["files_without_cell"] == [f"{tmp_path.name}/experiments/tldr/results/win_rates/{name}"]


@pytest.mark.parametrize(
    ("content", "words"), [("nonsense", "not JSON"), ("[]", "no scored verdict"), ("[[1, 2]]", "lengths")]
)
def test_a_file_that_gives_no_figure_leaves_its_cell_missing_with_the_reason(
    tmp_path: Path, content: str, words: str
) -> None:
    put(tmp_path, f"hh-rlhf/{OPPONENT}/3-vs-base-epoch-0.38-helpful.json", content)
    (cell,) = cells(tables([tmp_path]), "Table 2", subset="helpful", iteration=3)
    assert (cell["status"], cell["recomputed"]) == ("missing", None)
    assert words in cell["notes"][0]


def test_an_import_gives_the_same_tables(tmp_path: Path) -> None:
    checkout = tmp_path / "typo"
    put(checkout, f"hh-rlhf/{OPPONENT}/3-vs-base-epoch-0.38-helpful.json", verdicts(150, 20, 80))
    put(
        checkout,
        "hh-rlhf/results_fixed/mutual_information_clean/base-mutual-information-helpful.json",
        [1.0, 1.5, 1.31],
    )
    import_sami_paper([checkout], tmp_path / "out")
    one, two = (
        [{**cell, "file": None} for group in tables([folder])["groups"] for cell in group["cells"]]
        for folder in (checkout, tmp_path / "out")
    )
    assert one == two
    assert sum(cell["status"] != "missing" for cell in one) == 3


def test_the_verb_writes_a_report_and_strict_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "data", f"hh-rlhf/{OPPONENT}/3-vs-base-epoch-0.38-helpful.json", verdicts(150, 20, 80))
    assert main(["paper", "tables", "--data", str(tmp_path / "data"), "-o", str(tmp_path / "made"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "made" / "results.json").read_text())
    assert str(tmp_path) not in (tmp_path / "made" / "report.md").read_text() + json.dumps(printed)


def test_the_tables_fit_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["paper", "tables"]) == 0
    said = capsys.readouterr().out
    assert all(f"Table {number}:" in said for number in range(2, 10))
    assert "No data was named" in said
    assert max(map(len, said.splitlines())) <= 100


def test_every_cell_that_the_shared_files_cover_agrees_with_the_paper(shared_paper: list[Path]) -> None:
    found = tables(shared_paper)
    covered = {title: [c for c in cells(found, title) if c["status"] != "missing"] for title in CELLS}
    dialogue_and_two_principles = [c for title in list(CELLS)[1:7] for c in covered[title]]
    assert [c for c in dialogue_and_two_principles if c["status"] == "differs" and c["paper"] != 24.8] == []
    assert (len(covered["Table 2"]), len(covered["Table 3"])) == (6, 8)
    assert len(covered["Table 4"]) + len(covered["Table 5"]) >= 7
    headline = [c for c in covered["Headline"] if c["data"] == "hh-rlhf"]
    assert [(round(c["recomputed"], 2), c["status"]) for c in headline] == [
        (66.92, "agrees"), (77.78, "agrees"), (54.98, "agrees"), (57.93, "agrees"),
    ]  # fmt: skip


def test_the_published_report_is_what_the_command_writes(shared_paper: list[Path], root: Path) -> None:
    published = json.loads((root / "leaderboards/sami-2024/results.json").read_text())
    found = tables(shared_paper)
    for one, two in zip(published["groups"], found["groups"], strict=True):
        for cell, other in zip(one["cells"], two["cells"], strict=True):
            assert cell["paper"] == other["paper"]
            if cell["file"] is not None:
                assert (cell["status"], cell["file"]) == (other["status"], other["file"])
                assert cell["recomputed"] == pytest.approx(other["recomputed"], abs=1e-6)
