"""The authors' layout, with texts of the tests' own, becomes the harness's own files. Nothing of it is executed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

import harness
from harness.cli import main
from harness.importers.sami_paper import import_sami_paper, read_constants
from harness.models.recorded import read_answers
from harness.verdict_files import figures, read_verdicts
from sami_train.constitutions import load_principle_set
from sami_train.errors import UserError
from sami_train.prompts import load_template
from sami_train.yamlfile import read_yaml

PROMPTS = '''
import os
os.environ["HARNESS_TEST_WAS_RUN"] = "yes"
PROMPT_GENERATION = """Task: sum it up.

Rules: {constitution}

{question}

Short: """
PROMPT_TRAINING = "Rules: {constitution}\\n" + "{question}\\nShort:".strip()
JUDGE: str = "Which? {post} {constitution} {summary_a} {summary_b}"
NUMBER = 7
COMPUTED = PROMPT_TRAINING.upper()
CHANGED = f"{NUMBER} words"
'''

DIALOGUE = """
PROMPT_TRAINING = "Rules: {constitution}\\n\\nHuman: {question}\\n\\nAssistant:"
CONSTITUTIONS = {
    "helpful": {
        "positive": "1. Be helpful now.\\n2. Be harmless too.",
        "negative": [
            "1. Be of no use.\\n2. Be harmless too.",
            "1. Be helpful now.\\n2. Do harm.",
            "1. Be of no use.\\n2. Do harm.",
        ],
    },
}
"""


def put(folder: Path, path: str, content: Any) -> None:
    file = folder / "experiments" / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def pair(positive: list[tuple[str, str]], negative: list[tuple[str, str]]) -> dict[str, Any]:
    sides = {"positive": positive, "negative": negative}
    return {
        **{s: " \n".join(f"{n}. {text}" for n, (_, text) in enumerate(rows, 1)) for s, rows in sides.items()},
        "identifiers": {side: [name for name, _ in rows] for side, rows in sides.items()},
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "typo"
    good = [("pos concise", "Keep it short."), ("pos comprehensive", "Tell it all.")]
    put(folder, "tldr/constitutions_mistral/0.json", pair(good, [("neg concise", "Go on and on."), good[1]]))
    put(
        folder,
        "tldr/constitutions_mistral/1.json",
        pair(good[::-1], [("neg comprehensive", "Leave most out."), good[0]]),
    )
    diverse = {
        f"trait_{n}": {"definition": f"Show trait number {n}.", "antithesis": f"Hide trait number {n}."}
        for n in range(20)
    }
    put(folder, "tldr/constitutions_opus_diverse/constitutions.json", diverse)
    put(folder, "tldr/prompts.py", PROMPTS)
    put(folder, "hh-rlhf/prompts.py", DIALOGUE)
    responses = {
        "constitution": {"0": "1. Keep it short."},
        "question": {"0": "POST: A post."},
        "response": {"0": "Short."},
    }
    put(folder, "tldr/results/responses/base-mistral.json", responses)
    put(
        folder,
        "hh-rlhf/results_fixed/win_rates/3-vs-base-epoch-0.38-helpful.json",
        [[1, 5, 9], [0.5, 7, 7], [0, 9, 5], None],
    )
    put(
        folder,
        "tldr/results_fixed/mutual_information_clean/base-mistral-mistral-constitution-mutual-information.json",
        [0.5, 1.5],
    )
    return folder


def test_principle_sets_carry_the_names_that_the_recipes_use(checkout: Path, tmp_path: Path) -> None:
    about = import_sami_paper([checkout], tmp_path / "out")
    assert list(about["principle_sets"]) == ["sami-diverse", "sami-hh-rlhf", "sami-tldr-weak-writer"]
    weak = load_principle_set(tmp_path / "out/principles/sami-tldr-weak-writer.yaml")
    assert [(p.id, p.definition, p.antithesis, p.split) for p in weak.principles] == [
        ("concise", "Keep it short.", "Go on and on.", "learned"),
        ("comprehensive", "Tell it all.", "Leave most out.", "learned"),
    ]
    assert weak.hash == about["principle_sets"]["sami-tldr-weak-writer"]["hash"]
    assert "arXiv 2404.14313" in weak.source


def test_the_last_five_of_twenty_are_held_out(checkout: Path, tmp_path: Path) -> None:
    import_sami_paper([checkout], tmp_path / "out")
    diverse = load_principle_set(tmp_path / "out/principles/sami-diverse.yaml")
    assert [p.split for p in diverse.principles] == ["learned"] * 15 + ["held_out"] * 5
    assert diverse.principles[0].id == "trait-0"


def test_constitutions_that_are_python_constants_become_a_set(checkout: Path, tmp_path: Path) -> None:
    import_sami_paper([checkout], tmp_path / "out")
    dialogue = load_principle_set(tmp_path / "out/principles/sami-hh-rlhf.yaml")
    assert [(p.id, p.task, p.definition, p.antithesis) for p in dialogue.principles] == [
        ("helpful", ("dialogue",), "Be helpful now.", "Be of no use."),
        ("harmless", ("dialogue",), "Be harmless too.", "Do harm."),
    ]


def test_constants_are_read_and_nothing_is_run(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_TEST_WAS_RUN", raising=False)
    about = import_sami_paper([checkout], tmp_path / "out")
    import os

    assert "HARNESS_TEST_WAS_RUN" not in os.environ
    constants = read_yaml(tmp_path / "out/prompts/typo/experiments/tldr/constants.yaml").data["constants"]
    assert set(constants) == {"PROMPT_GENERATION", "PROMPT_TRAINING", "JUDGE"}
    assert constants["PROMPT_TRAINING"]["text"] == "Rules: {constitution}\n{question}\nShort:"
    assert constants["JUDGE"]["placeholders"] == ["constitution", "post", "summary_a", "summary_b"]
    computed = [row["file"] for row in about["left_out"]]
    assert computed == ["typo/experiments/tldr/prompts.py: COMPUTED", "typo/experiments/tldr/prompts.py: CHANGED"]


def test_templates_render_as_their_code_filled_them_in(checkout: Path, tmp_path: Path) -> None:
    import_sami_paper([checkout], tmp_path / "out")
    place = tmp_path / "out/prompts/typo/experiments"
    summary = load_template(place / "tldr/sami-tldr-prompt-generation.yaml")
    rendered = summary.render(["Keep it short."], "My dog ate it.", "completion").text
    assert rendered == "Task: sum it up.\n\nRules: 1. Keep it short.\n\nPOST: My dog ate it.\n\nShort:"
    assert summary.stop("completion") == ("\nTask:", "\nRules:", "\nPOST:", "\nShort:")
    dialogue = load_template(place / "hh-rlhf/sami-hh-rlhf-prompt-training.yaml")
    assert "\n\nHuman: How?\n\nAssistant:" in dialogue.render(["Be kind."], "How?", "completion").text
    assert not (place / "tldr/sami-tldr-judge.yaml").exists()


def test_what_stands_behind_the_last_label_begins_the_response(checkout: Path, tmp_path: Path) -> None:
    put(checkout, "tldr/prompts.py", f'{PROMPTS}\nBEGUN = "Rules: {{constitution}}\\n{{question}}\\nShort: It says"\n')
    import_sami_paper([checkout], tmp_path / "out")
    place = tmp_path / "out/prompts/typo/experiments/tldr"
    begun = load_template(place / "sami-tldr-begun.yaml")
    assert begun.completion.prefill == " It says"
    assert begun.render(["Be kind."], "Why?", "completion").text.endswith("\nShort:")
    assert begun.render(["Be kind."], "Why?", "completion", prefill=True).text.endswith("\nShort: It says")
    assert load_template(place / "sami-tldr-prompt-training.yaml").completion.prefill is None


@pytest.mark.parametrize("text", ["def broken(:", "x = " + "(" * 5000, "\x00"])
def test_what_is_not_python_is_refused_in_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "prompts.py").write_text(text)
    with pytest.raises(UserError, match="not Python"):
        read_constants(tmp_path / "prompts.py")


def test_verdicts_become_rows_with_the_same_figures(checkout: Path, tmp_path: Path) -> None:
    import_sami_paper([checkout], tmp_path / "out")
    name = "experiments/hh-rlhf/results_fixed/win_rates/3-vs-base-epoch-0.38-helpful"
    (one,) = read_verdicts(checkout / f"{name}.json")
    (two,) = read_verdicts(tmp_path / f"out/verdicts/typo/{name}.jsonl", "harness")
    of_file, of_rows = figures(one), figures(two)
    assert {k: v for k, v in of_rows.items() if k not in ("file", "about")} == {
        k: v for k, v in of_file.items() if k != "file"
    }
    assert of_rows["unscored"] == 1
    assert (
        of_rows["about"]
        == "mistral-iteration-3 against mistral-base, hh-rlhf-helpful, sami-hh-rlhf (learned), by recorded-gpt-4"
    )


def test_responses_and_values_are_brought_in(checkout: Path, tmp_path: Path) -> None:
    about = import_sami_paper([checkout], tmp_path / "out")
    (answer,) = read_answers(
        tmp_path / "out/responses/typo/experiments/tldr/results/responses/base-mistral/responses.jsonl"
    )
    assert (answer.query, answer.constitution, answer.text) == ("A post.", ("Keep it short.",), "Short.")
    (row,) = map(json.loads, (tmp_path / "out/information.jsonl").read_text().splitlines())
    assert (row["data"], row["model"], row["iteration"], row["writer"], row["n"], row["mean_nats"]) == (
        "tldr", "mistral", 0, "weak", 2, 1.0,
    )  # fmt: skip
    assert about["written"]["responses"] == 1
    assert all(len(digest) == 64 for digest in about["sha256"].values())


def test_a_broken_file_is_left_out_and_named(checkout: Path, tmp_path: Path) -> None:
    put(checkout, "tldr/results_fixed/win_rates/broken.json", "nonsense")
    put(checkout, "tldr/results_fixed/win_rates/fractions.json", [[0.25, 5, 5]])
    put(checkout, "tldr/results_fixed/responses/broken.json", [1, 2])
    put(checkout, "tldr/constitutions_mistral/9.json", "nonsense")
    about = import_sami_paper([checkout], tmp_path / "out")
    named = {Path(row["file"]).name for row in about["left_out"]}
    assert {"broken.json", "9.json", "fractions.json"} <= named
    assert "sami-tldr-weak-writer" in about["principle_sets"]


def test_nothing_is_written_into_the_harness(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = Path(harness.__file__).parent / "imported"
    assert main(["import", "sami-paper", str(checkout), "-o", str(inside)]) == 2
    assert "lies inside the harness" in capsys.readouterr().err
    assert not inside.exists()
    assert main(["import", "sami-paper", str(checkout), "-o", str(inside.parent.parent / "principles")]) == 2


def test_another_import_leaves_nothing_of_the_one_before(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = import_sami_paper([checkout], out)
    assert {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} == {*first["files"], "import.json"}
    (out / "principles/mine.yaml").write_text("mine")
    responses = "experiments/tldr/results/responses/base-mistral"
    (checkout / f"{responses}.json").unlink()
    assert main(["import", "sami-paper", str(checkout), "-o", str(out)]) == 0
    assert "removed, of the import before: responses/typo/" in capsys.readouterr().out
    assert not (out / "responses").exists()
    assert (out / "principles/mine.yaml").read_text() == "mine"
    again = json.loads((out / "import.json").read_text())
    assert {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()} == {
        *again["files"],
        "import.json",
        "principles/mine.yaml",
    }


def test_a_folder_without_the_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing of the authors' layout"):
        import_sami_paper([tmp_path / "empty"], tmp_path / "out")


def test_the_verb_says_what_was_written_and_what_comes_next(
    checkout: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["import", "sami-paper", str(checkout), "-o", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "principles/sami-diverse.yaml: 20 principles" in said
    assert "harness paper tables --data" in said
    assert main(["import", "sami-paper", str(checkout), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["written"]["principle sets"] == 3


def test_the_shared_files_are_imported_whole(tmp_path: Path) -> None:
    shared = Path(__file__).resolve().parents[3] / "shared" / "paper"
    if not shared.is_dir():
        pytest.skip(f"the shared paper data are absent ({shared})")
    about = import_sami_paper([shared / "sami", shared / "typo"], tmp_path / "out")
    assert {"sami-diverse", "sami-tldr-strong-writer", "sami-tldr-weak-writer"} <= about["principle_sets"].keys()
    assert about["written"]["responses"] >= 1250
    assert about["written"]["verdicts"] >= 5250


def test_pipes_and_links_out_of_the_checkout_are_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "sami/experiments/tldr"
    (folder / "data/responses").mkdir(parents=True)
    (folder / "prompts.py").write_text("PROMPT = 'one'\n", encoding="utf-8")
    outside = tmp_path / "secret.json"
    outside.write_text("{}", encoding="utf-8")
    (folder / "data/responses/base.json").symlink_to(outside)
    (folder / "other").mkdir()
    os.mkfifo(folder / "other/prompts.py")
    about = import_sami_paper([tmp_path / "sami"], tmp_path / "out")
    assert {row["file"].rpartition("tldr/")[2]: row["why"] for row in about["left_out"]} == {
        "data/responses/base.json": "it is a link that leads outside of the folder",
        "other/prompts.py": "it is not a regular file",
    }
