"""Recipes: the shipped ones against the paper's table 1 and the authors' code, `extends`, and errors with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_train.config import FOLDER, Recipe, dump_recipe, list_recipes, load_recipe, parse_changes, same_run
from sami_train.constitutions import load_principle_set
from sami_train.errors import UserError
from sami_train.inputs import templates_of
from sami_train.run_folder import begun_in_bf16

# Table 1 of the paper: gradient steps of the three iterations, optimizer, activation checkpointing.
TABLE_1 = {
    "mistral-7b": ([2, 4, 6], "adamw_torch", False),
    "mixtral-8x7b": ([2, 4, 6], "rmsprop", True),
    "llama3-70b": ([4, 8, 12], "rmsprop", True),
}
OF_THE_PAPER = [
    "mistral-7b/hh-rlhf",
    "mistral-7b/tldr-weak-writer",
    "mistral-7b/tldr-strong-writer",
    "mixtral-8x7b/tldr-weak-writer",
    "mixtral-8x7b/tldr-strong-writer",
    "llama3-70b/diverse-reasoning",
]
KINDS = ("paper", "as-run", "default")


def of_model(name: str) -> tuple[list[int], str, bool]:
    return TABLE_1[name.partition("/")[0]]


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / f"{name}.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_every_recipe_of_the_paper_is_shipped_in_three_forms() -> None:
    wanted = {f"{name}/{kind}" for name in OF_THE_PAPER for kind in KINDS}
    embedded = {f"embedded/gemma-3-270m{method}" for method in ("", "-dpo", "-sft")}
    assert wanted | embedded == set(list_recipes())


@pytest.mark.parametrize("name", list_recipes())
def test_a_shipped_recipe_bears_its_name_and_can_be_run_again(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.description
    assert load_recipe(str(write(tmp_path, "again", dump_recipe(recipe)))) == recipe
    assert (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").startswith("# "), "a header says what the recipe is"


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_paper_has_the_numbers_of_table_1(name: str) -> None:
    recipe = load_recipe(f"{name}/paper")
    steps, optimizer, checkpointing = of_model(name)
    assert (recipe.iterations, recipe.batch_size, recipe.constitutions_per_query) == (3, 128, 2)
    assert [recipe.batches(iteration) for iteration in (1, 2, 3)] == steps
    assert (recipe.optim, recipe.gradient_checkpointing, recipe.bf16) == (optimizer, checkpointing, True)
    assert (recipe.temperature, recipe.top_p) == (0.0, 0.9)
    assert recipe.max_new_tokens == (500 if recipe.reasoning else 350)
    assert [recipe.learning_rate_at(step, steps[2]) for step in range(steps[2])] == [5e-7] * steps[2]
    assert (recipe.gradient_queries, recipe.loss_scale, recipe.master_dtype) == (None, 1.0, "float32")
    assert recipe.max_grad_norm == 0, "the text knows no clipping"


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_as_run_has_the_learning_rates_of_the_authors_code(name: str) -> None:
    """5e-7 for 7B and Mixtral; 1e-6 in every public launch file and log of the 70B runs."""
    recipe = load_recipe(f"{name}/as-run")
    steps, optimizer, _ = of_model(name)
    peak = 1e-6 if name.startswith("llama3-70b") else 5e-7
    for iteration, n in enumerate(steps, start=1):
        rates = [recipe.learning_rate_at(step, recipe.batches(iteration)) / peak for step in range(n)]
        assert [round(rate, 2) for rate in rates[:4]] == [0, 1, 0.93, 0.86][:n]
        assert rates == pytest.approx([0.0] + [(15 - step) / 14 for step in range(1, n)])
        assert sum(rate > 0 for rate in rates) == n - 1, "the first step of an iteration changes nothing"
    assert (recipe.gradient_queries, recipe.loss_scale, recipe.max_grad_norm) == (8, 1 / 16, 1.0)
    assert recipe.master_dtype == ("float32" if optimizer == "adamw_torch" else "bfloat16")


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_default_watches_itself(name: str) -> None:
    recipe = load_recipe(f"{name}/default")
    steps, optimizer, checkpointing = of_model(name)
    assert [recipe.batches(iteration) for iteration in (1, 2, 3)] == steps
    assert (recipe.optim, recipe.gradient_checkpointing, recipe.master_dtype) == (optimizer, checkpointing, "float32")
    assert (recipe.bf16, recipe.max_grad_norm, recipe.gradient_queries, recipe.loss_scale) == (True, 1.0, None, 1.0)
    assert "length_ratio" in recipe.filters
    assert recipe.learning_rate_at(0, steps[0]) == pytest.approx(2.5e-7)
    assert recipe.learning_rate_at(1, steps[0]) == 5e-7
    assert recipe.eval_queries >= recipe.eval_samples > 0
    assert recipe.save_steps > 0
    for limit in ("length_ratio", "kl", "logps_drop"):
        assert getattr(recipe.stop_if, limit) > getattr(recipe.warn_if, limit), "a warning comes before the stop"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_contrasts_are_those_of_the_experiment(name: str, kind: str) -> None:
    recipe = load_recipe(f"{name}/{kind}")
    contrasts = {"hh-rlhf": "positive_vs_intent", "diverse-reasoning": "opposites"}
    assert recipe.contrast == contrasts.get(name.rpartition("/")[2], "positive_vs_rest")
    third = name.startswith("llama3-70b")
    assert recipe.polarity == ("random" if third else "principle")
    assert recipe.principles_per_constitution == 2
    assert recipe.sampling_example
    assert ("no_answer" in recipe.filters) == recipe.reasoning == third, (
        "the paper trained no 70B run without reasoning"
    )


SUBSTRINGS = {
    "hh-rlhf": {"The assistant", "sorry", "Response", "[insert", "]"},
    "tldr-weak-writer": {"[insert", "[]", "]", "sorry", "Response"},
    "tldr-strong-writer": {"[insert", "[]", "]", "sorry", "Response"},
    "diverse-reasoning": {"The assistant", "sorry", "Response", "[insert", "[]", "]"}
    | {"The post", "principles", "constitution", "summarization"},
}
"""What no response may contain, by the configurations of the authors' generators."""


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_as_run_filters_as_the_authors_generators_did(name: str) -> None:
    """By substrings; summaries also where the two are the same, or the first ends in no full stop; and by nothing else."""
    experiment = name.rpartition("/")[2]
    recipe = load_recipe(f"{name}/as-run")
    assert set(recipe.filter_substrings) == SUBSTRINGS[experiment]
    summaries = set() if experiment == "hh-rlhf" else {"identical", "no_full_stop"}
    assert set(recipe.rules) == {"empty", "substring"} | summaries | ({"no_answer"} if recipe.reasoning else set())


def test_dialogue_needs_no_full_stop() -> None:
    hh = {kind: load_recipe(f"mistral-7b/hh-rlhf/{kind}") for kind in KINDS}
    assert all("no_full_stop" not in recipe.rules for recipe in hh.values())
    assert hh["paper"].rules == hh["as-run"].rules == ("empty", "substring")
    assert {"apology", "cut_off", "identical"} <= set(hh["default"].rules)


@pytest.mark.parametrize("kind", ["paper", "default"])
def test_the_diverse_experiment_has_a_rule_against_copies(kind: str) -> None:
    assert "copies_constitution" in load_recipe(f"llama3-70b/diverse-reasoning/{kind}").rules


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_responses_end_and_begin_as_in_the_authors_code(name: str, kind: str) -> None:
    """Only the summaries of the diverse experiment end at a blank line; those of the others begin with "The post"."""
    recipe = load_recipe(f"{name}/{kind}")
    (template,) = templates_of(recipe, ["dialogue" if "hh-rlhf" in name else "summarization"], []).values()
    stop = template.stop("completion", reasoning=recipe.reasoning)
    assert "\n\n" not in stop
    if "hh-rlhf" in name:
        assert {"\n\nHuman", "###"} <= set(stop)
        assert template.completion.prefill is None
    elif recipe.reasoning:
        assert template.answer_bounds()[1:] == ["\n\n"]
        assert template.reasoning is not None
        assert template.reasoning.completion.prefill
        assert template.completion.prefill is None
    else:
        assert {"Human: ", "###"} <= set(stop)
        assert template.completion.prefill == " The post"


@pytest.mark.parametrize("kind", ["paper", "as-run"])
def test_heads_say_what_the_public_history_says(kind: str) -> None:
    def head(name: str) -> str:
        lines = (FOLDER / f"{name}/{kind}.yaml").read_text(encoding="utf-8").splitlines()
        return " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))

    if kind == "as-run":
        assert "1e-6" in head("llama3-70b/diverse-reasoning")
        assert "16 micro-steps are the paper's configuration, on 8 GPUs" in head("mistral-7b/hh-rlhf")
    else:
        assert "an evaluation with 'sampling.reasoning: false'" in head("llama3-70b/diverse-reasoning")
        assert "negate the helpful principle" in head("mistral-7b/hh-rlhf")
    assert not any("Open:" in head(name) for name in OF_THE_PAPER)


@pytest.mark.parametrize("name", OF_THE_PAPER)
def test_principle_sets_are_shipped_or_told_how_to_get(name: str) -> None:
    for kind in KINDS:
        for wanted in load_recipe(f"{name}/{kind}").principles:
            if not wanted.startswith("sami-"):
                assert load_principle_set(wanted).principles
            elif kind != "as-run":  # which extends the paper's
                header = (FOLDER / f"{name}/{kind}.yaml").read_text(encoding="utf-8")
                assert f"-o principles/{wanted}.yaml" in header
                assert "--set queries=[FILE]" in header


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith(("/as-run", "/default"))])
def test_a_recipe_that_extends_another_says_only_what_differs(name: str) -> None:
    import yaml

    said = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    parent = load_recipe(str(Path(name).with_name(said.pop("extends"))))
    recipe = load_recipe(name)
    assert [field for field in said if getattr(recipe, field) == getattr(parent, field)] == []


def test_every_field_is_described() -> None:
    assert [name for name, field in Recipe.model_fields.items() if not field.description] == []


# --- extends


def test_a_child_has_the_fields_of_its_parent_but_its_own(tmp_path: Path) -> None:
    write(tmp_path, "parent", "name: parent\nlearning_rate: 1e-4\nbatch_size: 4\nwarn_if: {kl: 1}\n")
    child = load_recipe(str(write(tmp_path, "child", "extends: parent\nname: child\nbatch_size: 6\n")))
    assert (child.name, child.learning_rate, child.batch_size, child.warn_if.kl) == ("child", 1e-4, 6, 1)


def test_a_recipe_beside_comes_before_a_shipped_one(tmp_path: Path) -> None:
    shipped = load_recipe(str(write(tmp_path, "a", "extends: embedded/gemma-3-270m\nname: a\n")))
    assert shipped.learning_rate == load_recipe("embedded/gemma-3-270m").learning_rate
    (tmp_path / "embedded").mkdir()
    write(tmp_path, "embedded/gemma-3-270m", "name: mine\nlearning_rate: 0.5\n")
    assert load_recipe(str(tmp_path / "a.yaml")).learning_rate == 0.5


@pytest.mark.parametrize("chain", [["a"], ["a", "b"], ["a", "b", "c"]])
def test_a_cycle_is_an_error_with_file_and_line(tmp_path: Path, chain: list[str]) -> None:
    for name, parent in zip(chain, [*chain[1:], chain[0]], strict=True):
        write(tmp_path, name, f"name: {name}\nextends: {parent}\nlearning_rate: 1e-4\n")
    with pytest.raises(UserError, match=rf"{chain[-1]}\.yaml:2: the recipe extends itself"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_an_unknown_parent_is_an_error_with_the_nearest_name(tmp_path: Path) -> None:
    file = write(tmp_path, "a", "extends: mistral-7b/hh-rlfh/paper\nname: a\n")
    with pytest.raises(UserError, match="did you mean 'mistral-7b/hh-rlhf/paper'"):
        load_recipe(str(file))


# --- errors


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bacth_size: 4", "r.yaml:3: unknown key 'bacth_size'; did you mean 'batch_size'?"),
        ("batch_size: 0", "r.yaml:3: 'batch_size': must be greater than or equal to 1 (it is 0)"),
        ("optim: rmspropp", "r.yaml:3: 'optim' cannot be 'rmspropp'; did you mean 'rmsprop'?"),
        ("stop_if: {lk: 1}", "r.yaml:3: unknown key 'stop_if.lk'; "),
        ("filters: [emtpy]", "r.yaml:3: 'filters.0' cannot be 'emtpy'; did you mean 'empty'?"),
        ("name: again", "r.yaml:3: the key 'name' stands twice"),
        ("gradient_queries: 99", "'gradient_queries' is above 'batch_size'"),
        ("filters: [substring]", "'substring' and the field 'filter_substrings' go together"),
        ("filter_substrings: sorry", "'substring' and the field 'filter_substrings' go together"),
        ("filter_substrings: ['']", "r.yaml:3: 'filter_substrings.0': must not be empty"),
        ("contrast: positive_vs_intend", "r.yaml:3: 'contrast' cannot be 'positive_vs_intend'; did you mean"),
        ("contrast: positive_vs_intent\nconstitutions_per_query: 3", "1 principle with 2 choices of sides for"),
        ("master_dtype: bfloat16", "'master_dtype: bfloat16' needs 'bf16: true'"),
        ("{", "r.yaml:"),
    ],
)
def test_a_wrong_field_is_named_with_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path, "r", f"name: r\nlearning_rate: 1e-4\n{line}\n")
    with pytest.raises(UserError) as error:
        load_recipe(str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"r\.yaml:1: 'learning_rate' is missing"):
        load_recipe(str(write(tmp_path, "r", "name: r\n")))


def test_changes_win_and_unknown_ones_are_errors() -> None:
    changed = load_recipe("embedded/gemma-3-270m", parse_changes(["learning_rate=3e-5", "filters=[empty]"]))
    assert (changed.learning_rate, changed.filters) == (3e-5, ("empty",))
    with pytest.raises(UserError, match="no field 'learning_rat'; did you mean 'learning_rate'"):
        load_recipe("embedded/gemma-3-270m", {"learning_rat": 1})
    with pytest.raises(UserError, match="not of the form field=value"):
        parse_changes(["learning_rate"])


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_begun_in_a_folder_says_what_auto_is(
    tmp_path: Path, begun: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine it goes on as it was begun, and is the same run."""
    monkeypatch.setattr("sami_train.config.has_bfloat16", lambda: not begun)
    assert begun_in_bf16(tmp_path) is None
    assert load_recipe("embedded/gemma-3-270m").bf16 is not begun
    (tmp_path / "recipe.yaml").write_text(dump_recipe(load_recipe("embedded/gemma-3-270m", bf16=begun)))
    resumed = load_recipe("embedded/gemma-3-270m", bf16=begun_in_bf16(tmp_path))
    assert resumed.bf16 is begun
    same_run(tmp_path / "recipe.yaml", resumed)
    assert load_recipe("embedded/gemma-3-270m", {"bf16": not begun}, bf16=begun).bf16 is not begun, "what is said wins"
