"""The model card: a head that hubs read, figures as they were measured, and text of others that stays text."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from sami_train.card import UNKNOWN, licence_of, model_card, versions
from sami_train.config import Recipe, load_recipe
from sami_train.models import Source, parse_source

METRICS: dict[str, Any] = {
    "iteration": 2, "pairs": 40, "filtered": {"empty": 3, "identical": 0}, "steps": 5,
    "loss_first": 0.7, "loss_last": 0.61234, "accuracy_last": 0.8, "mi_lower_bound_last": 0.09,
    "evaluation": {
        "n": 1234,
        "before": {"loss": 0.68, "loss_ci": [0.66, 0.7], "accuracy": 0.55, "accuracy_ci": [0.4, 0.7],
                   "mi_lower_bound": 0.01, "mi_lower_bound_ci": [-0.1, 0.2]},
        "after": {"loss": 0.6, "loss_ci": [0.5, 0.69], "accuracy": 0.75, "accuracy_ci": [0.6, 0.9],
                  "mi_lower_bound": 0.09, "mi_lower_bound_ci": [0.05, 0.15], "kl": 0.0123},
    },
}  # fmt: skip
DATA = {"queries": [{"file": "/home/somebody/secret/q.jsonl", "n": 120, "sha256": "ab" * 32}]}
SETS = {"principle_sets": [{"name": "verifiable", "version": 3, "hash": "c0ffee", "file": "v.yaml", "source": "ours"}]}


def card(**changes: Any) -> str:
    base = parse_source("embedded/gemma-3-270m")
    fields: dict[str, Any] = {
        "recipe": load_recipe("embedded/gemma-3-270m"), "base": base, "licence": licence_of(base),
        "data": DATA, "principles": SETS, "metrics": METRICS, "versions": versions(Recipe(name="r", learning_rate=1e-5)),
    }  # fmt: skip
    return model_card(**{**fields, **changes})


def fenced(text: str, language: str) -> str:
    found = re.search(rf"^(`{{3,}}){language}\n(.*?)\n\1$", text, re.DOTALL | re.MULTILINE)
    assert found
    return found[2]


def test_a_hub_reads_the_head() -> None:
    head = ModelCard(card(data={**DATA, "datasets": ["Anthropic/hh-rlhf", "no <b>id</b>"]})).data
    assert (head.base_model, head.library_name, head.license) == ("google/gemma-3-270m", "transformers", "gemma")
    assert "sami" in head.tags
    assert head.datasets == ["Anthropic/hh-rlhf"]


@pytest.mark.parametrize(
    ("licence", "fields"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("My own Licence, v2", {"license": "other", "license_name": "my-own-licence-v2"}),
        (UNKNOWN, {}),
    ],
)
def test_licences_in_the_head(licence: str, fields: dict[str, str]) -> None:
    head = ModelCard(card(licence=licence)).data.to_dict()
    assert {key: head[key] for key in ("license", "license_name") if key in head} == fields


def test_a_local_base_is_named_without_its_place(tmp_path: Path) -> None:
    text = card(base=Source("folder", str(tmp_path / "my-model")))
    assert "base_model" not in ModelCard(text).data.to_dict()
    assert "`my-model`" in text
    assert str(tmp_path) not in text


def test_the_recipe_can_be_run_again() -> None:
    recipe = load_recipe("embedded/gemma-3-270m")
    assert Recipe.model_validate(yaml.safe_load(fenced(card(), "yaml"))) == recipe


def test_absolute_paths_are_cut() -> None:
    recipe = load_recipe(
        "embedded/gemma-3-270m", {"model": "/home/somebody/base", "queries": ["/home/somebody/q.jsonl"]}
    )
    text = card(recipe=recipe)
    assert "somebody" not in text
    assert yaml.safe_load(fenced(text, "yaml"))["model"] == "base"


def test_the_snippet_is_python() -> None:
    for style in ("completion", "chat"):
        snippet = fenced(card(recipe=load_recipe("embedded/gemma-3-270m", {"style": style})), "python")
        compile(snippet, "card", "exec")


def test_the_snippet_runs(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tiny_model)
    for style in ("completion", "chat"):
        recipe = load_recipe("embedded/gemma-3-270m", {"style": style, "max_new_tokens": 3})
        exec(compile(fenced(card(recipe=recipe), "python"), "card", "exec"), {})
        assert capsys.readouterr().out


def test_the_change_of_the_loss_is_told_where_it_is_known() -> None:
    changed = {"loss_change": -0.08, "loss_change_ci": [-0.15, -0.01]}
    text = card(metrics={**METRICS, "evaluation": {**METRICS["evaluation"], **changed}})
    assert "The loss changed by -0.080 (-0.150 to -0.010) on the same queries (95%, paired)." in text
    for older in (METRICS, {**METRICS, "evaluation": {**METRICS["evaluation"], **dict.fromkeys(changed)}}):
        assert "The loss changed" not in card(metrics=older)


def test_figures_stand_with_their_intervals() -> None:
    text = card()
    assert "1,234 unseen queries" in text
    assert "| loss, nats | 0.680 (0.660 to 0.700) | 0.600 (0.500 to 0.690) |" in text
    assert "| bound on the mutual information, nats | 0.010 (-0.100 to 0.200) | 0.090 (0.050 to 0.150) |" in text
    assert "| KL to the base, nats per response token | – | 0.012 |" in text
    assert "length of sampled responses" not in text
    assert f"at most {math.log(2):.3f}" in text
    assert "0.700 → 0.612" in text
    assert "Left out before training: empty 3." in text
    assert "| `verifiable` | 3 | `c0ffee` | ours |" in text
    assert f"| `q.jsonl` | 120 | `{'ab' * 32}` |" in text


def test_what_was_not_measured_is_not_made_up() -> None:
    text = card(metrics={"steps": 2, "loss_first": float("nan")}, data={}, principles={})
    assert "Nothing was measured on unseen queries." in text
    assert "| loss of the first and the last step, nats | – → – |" in text
    assert "The queries were not recorded." in text
    assert "nan" not in text


def test_warnings_are_shown() -> None:
    assert "- responses grew to 1\\*2 of the base's" in card(
        metrics={**METRICS, "warnings": ["responses grew to 1*2 of the base's"]}
    )


NASTY = "```\n# Owned\n<script>alert(1)</script> [x](javascript:y) | a | ![i](u) \u202egnp.exe\x1b[31m --- `code`"


def test_text_of_others_stays_text() -> None:
    recipe = load_recipe(
        "embedded/gemma-3-270m", {"name": NASTY, "description": NASTY, "model": NASTY, "principles": [NASTY]}
    )
    sets = {"principle_sets": [dict.fromkeys(("name", "version", "hash", "file", "source"), NASTY)]}
    data = {"queries": [{"file": NASTY, "n": 1, "sha256": NASTY}], "datasets": [NASTY]}
    text = card(
        recipe=recipe, base=Source("folder", NASTY), licence=NASTY, data=data, principles=sets,
        metrics={**METRICS, "warnings": [NASTY], "filtered": {NASTY: 1}}, versions={NASTY: NASTY},
    )  # fmt: skip
    assert Recipe.model_validate(yaml.safe_load(fenced(text, "yaml"))).description == NASTY
    assert not set("\u202e\x1b") & set(text)
    outside = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    outside = re.sub(r"`[^`\n]*`", "", outside.replace("\\`", ""))
    assert "`" not in outside
    assert not re.search(r"<script|(?<!\\)\]\(javascript|(?<!\\)!\\?\[i|^# Owned", outside, re.MULTILINE)
    assert {line.count("|") - line.count("\\|") for line in outside.splitlines() if line.startswith("| ")} <= {3, 4, 5}
    ModelCard(text)


def write(folder: Path, name: str, text: str) -> Source:
    (folder / name).write_text(text, encoding="utf-8")
    return Source("folder", str(folder))


@pytest.mark.parametrize(
    ("name", "text", "licence"),
    [
        ("README.md", "---\nlicense: apache-2.0\n---\n# A model", "apache-2.0"),
        ("README.md", "---\nlicense: other\nlicense_name: my-own\n---\n", "my-own"),
        ("README.md", "---\nlicense: [mit, gemma]\n---\n", "mit, gemma"),
        ("README.md", "---\nlicense: [\n---\n", UNKNOWN),
        ("README.md", "---\n- a\n---\n", UNKNOWN),
        ("README.md", "# No head\nlicense: mit", UNKNOWN),
        ("LICENSE", "      Apache License\n   Version 2.0, January 2004", "apache-2.0"),
        ("LICENSE", "MIT License\n\nCopyright", "mit"),
        ("LICENSE.txt", "\nOUR TERMS OF USE\n...", "OUR TERMS OF USE (file LICENSE.txt of the base model)"),
        ("config.json", "{}", UNKNOWN),
    ],
)
def test_the_licence_of_a_folder(tmp_path: Path, name: str, text: str, licence: str) -> None:
    assert licence_of(write(tmp_path, name, text)) == licence


def test_a_checkpoint_passes_its_licence_on(tmp_path: Path) -> None:
    assert licence_of(write(tmp_path, "README.md", card())) == "gemma"


def test_licences_without_a_folder() -> None:
    assert licence_of(parse_source("embedded/smollm2-135m-instruct")) == "Apache-2.0"
    assert licence_of(Source("hub", "nobody/nothing")) == UNKNOWN


def test_versions_name_the_packages() -> None:
    found = versions(Recipe(name="r", learning_rate=1e-5))
    assert found.keys() == {"python", "torch", "transformers", "sami-harness"}
    assert found["torch"].startswith("2.")
    other = versions(Recipe(name="r", learning_rate=1e-5, method="sft", use_peft=True, optim="adamw_torch_8bit"))
    assert other.keys() - found.keys() == {"peft", "trl", "torchao"}


def test_the_commit_of_a_base_from_the_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sami_train.card._hub_snapshot", lambda _: Path("/cache/snapshots/0a1b2c"))
    assert "org/model@0a1b2c" in card(base=Source("hub", "org/model"))
