"""Prompts and their ends: labels and lists are read from the template, whatever its wording."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_train.errors import UserError
from sami_train.prompts import FOLDER, Style, Template, listed, load_template

OWN = """
name: own
task: dialogue
completion:
  example: |
    Asked: one?
    Rules:
    Be kind.
    Said: two.

  text: |
    Asked: {query}
    Rules:
    {principles}
    Said:
  stop: ["\\nAsked:"]
chat:
  messages:
    - {role: system, content: "You answer."}
    - {role: user, content: "{query}\\n\\nKeep to this:\\n{principles}"}
reasoning:
  marker: "Said:"
  completion: {text: "Asked: {query}\\nRules:\\n{principles}\\nThought:\\n"}
  chat: {messages: [{role: user, content: "{query}\\nKeep to this:\\n{principles}\\nThink, then write Said: and answer."}]}
"""
STYLES: tuple[Style, ...] = ("completion", "chat")
SHIPPED = sorted(file.stem for file in FOLDER.glob("*.yaml"))
FORMS = [
    (name, style, r)
    for name in SHIPPED
    for style in STYLES
    for r in (False, True)
    if not r or load_template(name).reasoning
]


@pytest.fixture
def own(tmp_path: Path) -> Template:
    (tmp_path / "own.yaml").write_text(OWN, encoding="utf-8")
    return load_template(tmp_path / "own.yaml")


# --- Templates that extend others


def test_a_template_says_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(OWN, encoding="utf-8")
    child = tmp_path / "child.yaml"
    child.write_text('extends: own\nname: child\ncompletion: {stop: ["###"], prefill: " It"}\n', encoding="utf-8")
    own, extended = load_template(tmp_path / "own.yaml"), load_template(child)
    assert (extended.name, extended.completion.stop, extended.completion.prefill) == ("child", ("###",), " It")
    assert extended.completion.text == own.completion.text
    assert (extended.chat, extended.reasoning) == (own.chat, own.reasoning)
    child.write_text("extends: dialogue\nname: child\n", encoding="utf-8")
    assert load_template(child).completion == load_template("dialogue").completion


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: child\nname: child\n", r"child\.yaml:1: the prompt template extends itself"),
        ("extends: dialog\nname: child\n", "did you mean 'dialogue'"),
        (
            "extends: dialogue\nname: child\ncompletion: {prefil: x}\n",
            r"child\.yaml:3: unknown key 'completion.prefil'",
        ),
        ("extends: dialogue\nname: child\ncompletion: {stop: ['']}\n", r"child\.yaml:3: 'completion.stop.0'"),
        ("extends: dialogue\nname: child\ncompletion: {prefill: ''}\n", r"child\.yaml:3: 'completion.prefill'"),
        ("extends: dialogue\nname: child\ncompletion: {text: no}\n", r"child\.yaml:3: "),
        ("- a list\n", r"child\.yaml"),
    ],
)
def test_a_mistake_in_a_template_that_extends_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "child.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as error:
        load_template(file)
    assert "\n" not in str(error.value)


def test_templates_of_before_keep_their_hashes() -> None:
    """Fields that a template does not use change no hash: with other ones runs could not go on."""
    known = {"dialogue": "33651e22c103907469c9ca92e7eb094f"}
    assert {name: load_template(name).hash for name in known} == known


# --- Principles in a prompt


def test_several_principles_are_numbered_and_one_is_not(own: Template) -> None:
    assert listed(["Be kind."]) == "Be kind."
    assert listed(["Be kind."], number_one=True) == "1. Be kind."
    assert listed(["Be kind.", "Be brief."]) == "1. Be kind.\n2. Be brief."
    assert own.render(["Be kind."], "why?", "completion").text == "Asked: why?\nRules:\nBe kind.\nSaid:"
    two = own.render(["Be kind.", "Be brief."], "why?", "chat").chat
    assert two[-1]["content"] == "why?\n\nKeep to this:\n1. Be kind.\n2. Be brief."


@pytest.mark.parametrize(("name", "style", "reasoning"), FORMS)
def test_no_shipped_prompt_of_one_principle_has_a_list_that_could_go_on(
    name: str, style: Style, reasoning: bool
) -> None:
    prompt = load_template(name).render(["Be kind."], "why?", style, example=True, reasoning=reasoning).text
    assert not [line for line in prompt.splitlines() if line.lstrip()[:2] in ("1.", "1)")]


# --- Labels


def test_labels_are_the_beginnings_of_the_prompts_lines(own: Template) -> None:
    assert own.labels("completion") == ("Asked:", "Rules:", "Said:")
    assert own.labels("chat") == ("Keep to this:",)
    assert own.labels("completion", reasoning=True) == ("Asked:", "Rules:", "Thought:", "Said:")
    assert own.labels("chat", reasoning=True) == ("Keep to this:", "Said:")


@pytest.mark.parametrize(("name", "style", "reasoning"), FORMS)
def test_labels_of_the_shipped_templates_stand_in_their_prompts(name: str, style: Style, reasoning: bool) -> None:
    template = load_template(name)
    prompt = template.render(["Be kind."], "why?", style, reasoning=reasoning).text
    labels = template.labels(style, reasoning=reasoning)
    assert labels
    assert all(label in prompt or label == template.answer_marker() for label in labels)
    if style == "completion":
        assert reasoning or prompt.endswith(labels[-1]), "the response's own label is the last"


# --- Where a response runs on


@pytest.mark.parametrize("reasoning", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_a_response_ends_where_the_prompts_next_turn_begins(own: Template, style: Style, reasoning: bool) -> None:
    for label in own.labels(style, reasoning=reasoning):
        text = f"It is late.\n\n  {label} and more\nof it"
        assert own.run_on(text, 1, style, reasoning=reasoning) == len("It is late.\n\n")
        assert own.run_on(f"It is late, said {label} and more", 1, style, reasoning=reasoning) is None


def test_the_first_line_may_repeat_the_responses_own_label_and_no_other(own: Template) -> None:
    assert own.run_on("Said: it is late.", 1, "completion") is None
    assert own.run_on("Said: it is late.\nSaid: it is early.", 1, "completion") == 18
    assert own.run_on("Asked: what is late?\nSaid: nothing.", 1, "completion") == 0
    assert own.run_on("Keep to this:\nBe kind.", 1, "chat") == 0, "a chat has no label of the response"
    for style in STYLES:
        assert own.run_on("Said: it is late.", 1, style, reasoning=True) is None
    assert own.run_on("Thought: it is late.", 1, "completion", reasoning=True) == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_response_ends_where_it_goes_on_with_the_list_of_principles(own: Template, style: Style) -> None:
    text = "It is late.\n3. Say so.\n4. Be kind."
    assert own.run_on(text, 2, style) == len("It is late.\n")
    assert own.run_on(text.replace("3.", "3)"), 2, style) == len("It is late.\n")
    assert own.run_on("3. Say so.", 2, style) == 0
    assert own.run_on(text, 1, style) is None, "one principle is no list"
    assert own.run_on(text, 3, style) is None, "it counted three itself"
    assert own.run_on("It is late.\n4. Be kind.", 3, style) == len("It is late.\n")
    assert own.run_on("It is late.\n3.5 hours went by.\n3.\n", 2, style) == text.index("3") + len(
        "3.5 hours went by.\n"
    )
    assert own.run_on("It is late.\n3.5 hours went by, 3. of them", 2, style) is None


@pytest.mark.parametrize("style", STYLES)
def test_a_list_of_the_responses_own_is_not_cut(own: Template, style: Style) -> None:
    for principles in (1, 2, 3, 4):
        text = "Do this:\n" + "\n".join(f"{n}. thing {n}" for n in range(1, 6))
        assert own.run_on(text, principles, style) is None
        assert own.run_on(f"{text}\nSaid: so\nAsked: no\nKeep to this:\n", principles, style) == len(text) + 1 + (
            0 if style == "completion" else len("Said: so\nAsked: no\n")
        )
    assert own.run_on("1. one\n2. two\n3. three", 2, style) is None
    assert own.run_on("2. two\n3. three", 2, style) is None, "it counted two itself"
    assert own.run_on("1. one\n3. three", 2, style) == len("1. one\n")


def test_a_text_without_lines_runs_on_nowhere(own: Template) -> None:
    for text in ("", "\n\n", "It is late."):
        assert own.run_on(text, 2, "completion") is None


@pytest.mark.parametrize(("name", "style", "reasoning"), FORMS)
def test_a_response_that_goes_on_with_the_shipped_prompt_ends_before_it(
    name: str, style: Style, reasoning: bool
) -> None:
    """The prompt again, of another query, after a response: it is cut off before the prompt's first label or item."""
    template = load_template(name)
    again = template.render(["Be kind.", "Be brief.", "Be loud."], "why?", style, reasoning=reasoning).text
    labels = template.labels(style, reasoning=reasoning)
    lines = again.splitlines(keepends=True)
    first = next(n for n, line in enumerate(lines) if line.startswith((*labels, "3.")))
    text = "It is late.\n" + again
    assert template.run_on(text, 2, style, reasoning=reasoning) == len("It is late.\n" + "".join(lines[:first]))
