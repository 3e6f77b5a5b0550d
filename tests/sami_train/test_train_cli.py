"""The command `sami-train`: help without torch, lists, recipes with their meaning, and errors of one sentence."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sami_train.cli import main
from sami_train.config import Recipe, dump_recipe, list_recipes, load_recipe
from sami_train.constitutions import load_principle_set
from sami_train.errors import UserError
from sami_train.inputs import folders_of, inputs, located, provenance

HEAVY = ("torch", "transformers", "numpy", "pydantic", "rich", "datasets")


def sami_train(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [(["--help"], HEAVY), (["show", "--help"], HEAVY), (["list"], ("torch", "transformers", "datasets"))],
)
def test_nothing_heavy_is_imported_for_help_and_list(arguments: list[str], absent: tuple[str, ...]) -> None:
    code = (
        "import sys\nfrom sami_train.cli import main\n"
        f"assert main({arguments!r}) == 0\nprint(sorted(set({absent!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert done.stdout


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run([sys.executable, "-m", "sami_train", "--help"], capture_output=True, text=True, check=True)
    assert all(f"\n  {verb} " in done.stdout for verb in ("run", "list", "show", "plan"))


def test_list_is_plain_where_it_is_piped(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = sami_train(capsys, "list")
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0
    assert [name for name, _ in rows] == list_recipes()
    assert all(description for _, description in rows)
    assert [row["name"] for row in json.loads(sami_train(capsys, "list", "--json")[1])] == list_recipes()


@pytest.mark.parametrize(
    "name", ["embedded/gemma-3-270m", "mistral-7b/hh-rlhf/as-run", "llama3-70b/diverse-reasoning/default"]
)
def test_show_is_a_recipe_with_every_meaning(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    code, out, _ = sami_train(capsys, "show", name)
    assert code == 0
    file = tmp_path / "shown.yaml"
    file.write_text(out, encoding="utf-8")
    shown = located(load_recipe(name), folders_of(name))
    assert load_recipe(str(file)) == shown
    words = " ".join(line.removeprefix("# ") for line in out.splitlines())
    assert [f for f, info in Recipe.model_fields.items() if str(info.description) not in words] == []
    assert json.loads(sami_train(capsys, "show", name, "--json")[1]) == yaml.safe_load(dump_recipe(shown))


def test_show_marks_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = sami_train(capsys, "show", "mistral-7b/hh-rlhf/as-run", "--set", "seed=3")
    lines = out.splitlines()
    assert lines[0] == "# mistral-7b/hh-rlhf/as-run, which extends mistral-7b/hh-rlhf/paper (its parent)"
    assert "batch_size: 128  # default 16" in lines
    assert "gradient_queries: 8  # default null, parent null" in lines
    assert "max_grad_norm: 1.0  # parent 0.0" in lines
    assert "seed: 3  # default 0, parent 0, --set" in lines
    assert "shuffle_principles: true" in lines


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mixtral-8x7b/tldr-weak-writer/paper", "6 steps of iteration 3 would move"),
        ("llama3-70b/diverse-reasoning/paper", "by 56.7 times this rate (2.8e-05), one step by 10.0 times at most."),
        ("llama3-70b/diverse-reasoning/as-run", "(3.3e-05), one step by 7.1 times at most."),
        ("mistral-7b/hh-rlhf/paper", "Dose of adamw_torch: 6 steps of iteration 3 would move"),
        ("mistral-7b/hh-rlhf/paper", "by 6.0 times this rate (3e-06), one step by 1.0 times at most."),
    ],
)
def test_show_states_the_dose(capsys: pytest.CaptureFixture[str], name: str, said: str) -> None:
    """RMSprop without bias correction moves a weight by 10, 7.1, 5.8, ... times the rate in its first steps."""
    for how in ([], ["--fields"]):
        _, out, _ = sami_train(capsys, "show", name, *how)
        assert said in " ".join(line.removeprefix("# ") for line in out.splitlines())


def test_the_dose_is_that_of_torchs_optimizers() -> None:
    import torch

    from sami_train.optimizers import make_optimizer, moves, set_learning_rate

    for name in ("llama3-70b/diverse-reasoning/as-run", "mistral-7b/hh-rlhf/default"):
        recipe = load_recipe(name, {"weight_decay": 0.0})
        weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        optimizer, places = make_optimizer(recipe, [weight]), [0.0]
        for step in range(recipe.steps(3)):
            weight.grad = torch.full_like(weight, -3.0)
            set_learning_rate(optimizer, recipe.learning_rate_at(step, recipe.steps(3)))
            optimizer.step()
            places.append(weight.item() / recipe.learning_rate)
        assert [b - a for a, b in itertools.pairwise(places)] == pytest.approx(moves(recipe, 3), rel=1e-6)


def test_fields_are_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = sami_train(capsys, "show", "mistral-7b/hh-rlhf/paper", "--fields")
    rows = {line.split("\t")[0]: line.split("\t") for line in out.splitlines()}
    assert rows.keys() == Recipe.model_fields.keys()
    assert rows["iterations"][1:3] == ["3", "default 2"]
    assert rows["learning_rate"][1:3] == ["5e-07", ""]


@pytest.mark.parametrize("text", ["a: b # c", "two\nlines", "- x", "'\"", "null", "5", "{x}", "ünï — 漢"])
def test_show_survives_any_text(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str) -> None:
    fields = {"name": text, "description": text, "model": text, "queries": [text], "learning_rate": 1e-5}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    shown = tmp_path / "shown.yaml"
    shown.write_text(sami_train(capsys, "show", str(file))[1], encoding="utf-8")
    assert load_recipe(str(shown)) == load_recipe(str(file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mistral-7b/hh-rlfh/paper"], "did you mean 'mistral-7b/hh-rlhf/paper'?"),
        (["show", "embedded/gemma"], "did you mean 'embedded/gemma-3-270m'?"),
        (["shwo", "x"], "there is no verb 'shwo'; did you mean 'show'?"),
        (["show"], "the following arguments are required: RECIPE; see 'sami-train show --help'"),
        (["list", "--jsn"], "unrecognized arguments: --jsn; see 'sami-train list --help'"),
        (
            ["run", "embedded/gemma-3-270m", "--set", "bacth_size=1"],
            "a recipe has no field 'bacth_size'; did you mean 'batch_size'?",
        ),
        (["show", "nowhere.yaml"], "nowhere.yaml: there is no such recipe; check the name"),
        (["mistral-7b/hh-rlhf/paper"], "names no queries; add the field, or use --set queries=..."),
        (["embedded/gemma-3-270m", "--set", "queries=[no.jsonl]"], "no.jsonl: there is no such data file"),
    ],
)
def test_errors_are_one_sentence(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    code, out, err = sami_train(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("sami-train: ")
    assert err.count("\n") == 1
    assert message in err


def test_a_missing_principle_set_is_told_how_to_get(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARNESS_PRINCIPLES", str(tmp_path))
    code, _, err = sami_train(capsys, "mistral-7b/hh-rlhf/paper", "--set", "queries=[x.jsonl]")
    assert code == 2
    assert "no principle set named 'sami-hh-rlhf'" in err
    assert str(tmp_path) in err, "where it was looked for"
    assert "harness principles write ... -o principles/sami-hh-rlhf.yaml" in err
    assert "--set principles=[" in err


def test_inputs_of_a_shipped_recipe() -> None:
    recipe = load_recipe("embedded/gemma-3-270m")
    source, data = inputs(recipe, folders_of("embedded/gemma-3-270m"))
    assert str(source) == "embedded/gemma-3-270m"
    assert len(data.queries) > 50
    assert data.principles["dialogue"] == list(load_principle_set("verifiable").select("dialogue", "learned"))
    assert [row["n"] for row in data.provenance["queries"]] == [len(data.queries)]
    assert [row["name"] for row in data.provenance["principle_sets"]] == ["verifiable"]


def test_files_are_found_beside_the_recipe_or_the_one_it_extends(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("extends: embedded/gemma-3-270m\nname: mine\n", encoding="utf-8")
    assert inputs(load_recipe(str(file)), folders_of(str(file)))[1].queries
    (tmp_path / "q.jsonl").write_text('{"query": "Why?"}\n{"query": "How?", "part": "eval"}\n', encoding="utf-8")
    file.write_text("extends: embedded/gemma-3-270m\nname: mine\nqueries: [q.jsonl]\n", encoding="utf-8")
    assert [q.text for q in inputs(load_recipe(str(file)), folders_of(str(file)))[1].queries] == ["Why?"]


@pytest.mark.parametrize(
    ("named", "expected"),
    [([], "dialogue"), (["hh-rlhf"], "hh-rlhf"), (["tldr"], "dialogue"), (["own.yaml", "tldr"], "own")],
)
def test_templates_are_named_or_those_of_the_kind(tmp_path: Path, named: list[str], expected: str) -> None:
    (tmp_path / "own.yaml").write_text("extends: dialogue\nname: own\n", encoding="utf-8")
    file = tmp_path / "mine.yaml"
    file.write_text(f"extends: embedded/gemma-3-270m\nname: mine\ntemplates: {named}\n", encoding="utf-8")
    recipe = located(load_recipe(str(file)), folders_of(str(file)))
    assert inputs(recipe, [])[1].templates["dialogue"].name == expected


def test_two_templates_for_one_kind_are_an_error() -> None:
    recipe = load_recipe("embedded/gemma-3-270m", {"templates": ["hh-rlhf", "tldr", "dialogue"]})
    with pytest.raises(UserError, match="names two templates for dialogue, 'hh-rlhf' and 'dialogue'"):
        inputs(recipe, folders_of("embedded/gemma-3-270m"))


def test_rows_say_what_a_query_is_about(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"query": "Why?", "intent": "harmless"}\n{"query": "How?"}\n', encoding="utf-8")
    recipe = load_recipe("embedded/gemma-3-270m", {"queries": [str(file)]})
    assert [query.intent for query in inputs(recipe, [])[1].queries] == ["harmless", ""]
    file.write_text('{"query": "Why?", "intent": 3}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"q\.jsonl:1: 'intent' must be a text"):
        inputs(recipe, [])


def test_too_few_principles_are_an_error() -> None:
    recipe = load_recipe("embedded/gemma-3-270m", {"principles": ["summarization"]})
    with pytest.raises(UserError, match="too few learned principles for dialogue"):
        inputs(recipe, folders_of("embedded/gemma-3-270m"))


def test_provenance_names_files_and_sets(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text('{"query": "Why?"}\n', encoding="utf-8")
    found = provenance({file: 1}, [load_principle_set("dialogue")])
    assert found["queries"] == [
        {"file": str(file), "n": 1, "sha256": hashlib.sha256(b'{"query": "Why?"}\n').hexdigest()}
    ]
    (row,) = found["principle_sets"]
    assert (row["name"], row["hash"]) == ("dialogue", load_principle_set("dialogue").hash)
    json.dumps(found)


def test_a_run_by_recipe(capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_model: Path) -> None:
    queries = [{"query": f"What is number {n}?"} for n in range(8)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries), encoding="utf-8")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: tiny\nmodel: {tiny_model}\nqueries: [q.jsonl]\nprinciples: [verifiable]\niterations: 1\nbatch_size: 2\n"
        "batches_at_start: 1\nmax_new_tokens: 6\nmax_prompt_tokens: 200\nlearning_rate: 1e-4\nfilters: [empty]\n",
        encoding="utf-8",
    )
    code, out, _ = sami_train(capsys, str(recipe), "-o", str(tmp_path / "run"))
    assert code == 0
    assert out.splitlines()[-1] == f"trained model: {tmp_path / 'run' / 'iteration-1' / 'model'}"
    model = tmp_path / "run" / "iteration-1" / "model"
    assert (model / "model.safetensors").is_file()
    card = (model / "README.md").read_text(encoding="utf-8")
    assert "| `q.jsonl` | 8 |" in card
    assert "| `verifiable` |" in card
    assert str(tmp_path) not in card
    code, _, err = sami_train(capsys, str(recipe), "--set", "batch_size=7", "-o", str(tmp_path / "other"))
    assert (code, "needs 7 queries" in err) == (1, True)
