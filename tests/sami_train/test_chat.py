"""Chat templates of others: the end of an assistant's turn, messages that are left out, and limits on what a template does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from sami_train import chat
from sami_train.chat import render_chat, turn_end
from sami_train.errors import UserError
from sami_train.generation import encode_prompt, ends_of, finish, generate, generate_batch
from sami_train.models import has_chat_template, load_model, load_tokenizer, parse_source
from sami_train.prompts import load_template

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GLM = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}<|assistant|>\n"
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]{% else %} {{ m.content }} </s>"
    "{% endif %}{% endfor %}"
)
PARTS = (
    "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{{ p.text }}{% endfor %}</s>{% endfor %}assistant:"
)
MESSAGES = [{"role": "system", "content": "Be kind.\n\n1. Be brief."}, {"role": "user", "content": " What is\nthis? "}]


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(parse_source(str(tiny_model)))


def tokens(tokenizer: Any, *names: str, special: bool = True) -> list[int]:
    tokenizer.add_tokens(list(names), special_tokens=special)
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "end"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>"), (GLM, "<|user|>"), (LLAMA2, "</s>")]
)
def test_the_token_behind_an_assistants_message_ends_a_turn(
    tokenizer: Any, template: str, end: str, special: bool
) -> None:
    (wanted,) = tokens(tokenizer, end, special=special)
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == chat.TurnEnd(frozenset({wanted}))


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, ("<|im_end|>",)),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:", ("\nuser:",)),
        ("{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}", ("\n\n### user:",)),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", ()),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", ()),
        ("{{ raise_exception('no') }}", ()),
        ("{{ messages[0].content }}", ()),
    ],
)
def test_what_has_no_token_is_a_string(tokenizer: Any, template: str, end: tuple[str, ...]) -> None:
    tokenizer.chat_template = template
    assert turn_end(tokenizer) == chat.TurnEnd(strings=end)


def test_a_changed_template_has_its_own_end(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    assert turn_end(tokenizer).strings == ("<|im_end|>",)
    tokenizer.chat_template = LLAMA2
    assert turn_end(tokenizer).ids == {2}


def test_a_response_ends_with_its_turn_and_not_only_with_the_text(tiny_model: Path, tokenizer: Any) -> None:
    """A base model tuned with ChatML: end and padding are still the base's, and the model writes <|im_end|> as it learned."""
    import torch

    (end,) = tokens(tokenizer, "<|im_end|>")
    tokenizer.chat_template = CHATML
    model = load_model(parse_source(str(tiny_model)))
    model.resize_token_embeddings(len(tokenizer))
    model.lm_head = torch.nn.Linear(model.config.hidden_size, len(tokenizer))
    with torch.no_grad():
        model.lm_head.bias[end] = 1e6
    ended = {}
    for style in ("chat", "completion"):
        prompt = load_template("dialogue").render(["Be kind."], "Hello?", style)  # type: ignore[arg-type]
        (batch,) = generate(model, tokenizer, [prompt], max_new_tokens=6, max_prompt_tokens=900)
        ended[style] = (batch[0].ids, batch[0].finish_reason)
    assert ended == {"chat": ([], "stop"), "completion": ([end] * 6, "length")}


def test_text_behind_the_end_of_a_turn_is_cut(tokenizer: Any) -> None:
    (end,) = tokens(tokenizer, "<|im_end|>", special=False)
    tokenizer.chat_template = CHATML
    encoded = encode_prompt(tokenizer, load_template("dialogue").render(["Be kind."], "Hello?", "chat"), 900)
    ends, stop = ends_of(type("Settings", (), {"eos_token_id": 0}), tokenizer, [encoded], ("###",))
    ids = tokenizer("Yes.", add_special_tokens=False).input_ids
    raw = [*ids, end, *tokenizer("\nsystem\n", add_special_tokens=False).input_ids]
    made = finish(tokenizer, encoded, raw, ends=ends, stop=stop, max_new_tokens=len(raw))
    assert (made.text, made.ids, made.finish_reason) == ("Yes.", ids, "stop")
    assert stop == ("###",)


@pytest.mark.parametrize(
    "template",
    [
        "assistant:",
        "{% for m in messages %}{{ m.role }}: {{ m.content[:10] }}\n{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{{ m.content[0].txt }}{% endfor %}",
        "{{ messages[0].content }}",
    ],
)
def test_a_template_that_leaves_out_a_message_is_refused(tokenizer: Any, template: str) -> None:
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"leaves out the (system|user) message or a part of it.*style: completion$"):
        render_chat(tokenizer, MESSAGES)


def test_a_template_for_content_parts_gets_them(tokenizer: Any) -> None:
    tokenizer.chat_template = PARTS
    assert (
        render_chat(tokenizer, MESSAGES) == "system: Be kind.\n\n1. Be brief.</s>user:  What is\nthis? </s>assistant:"
    )


def test_white_space_may_be_trimmed(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | trim }}|{% endfor %}"
    assert render_chat(tokenizer, MESSAGES) == "Be kind.\n\n1. Be brief.|What is\nthis?|"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ raise_exception('no system prompts') }}", "no system prompts"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[0].content + 1 }}", "can only concatenate str"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "longer than 0.2 seconds"),
        ("{% set n = namespace(s='x') %}{% for a in range(50) %}{% set n.s = n.s + n.s %}{% endfor %}", ""),
        ("{{ 'x' * 99999999999 }}", "MemoryError"),
        ("{% if %}", "Expected an expression"),
        ({"tool_use": "a", "rag": "b"}, ""),
    ],
)
def test_a_template_that_fails_is_one_sentence(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch, template: Any, said: str
) -> None:
    monkeypatch.setattr(chat, "SECONDS", 0.2)
    monkeypatch.setattr(chat, "MEMORY", 64 << 20)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"chat template.*style: completion$") as caught:
        render_chat(tokenizer, MESSAGES)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_named_templates_need_a_default(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    several = [{"name": "tool_use", "template": "a"}, {"name": "rag", "template": "b"}]
    file.write_text(json.dumps({**settings, "chat_template": several}), encoding="utf-8")
    with pytest.raises(UserError, match=r"model' has several chat templates \(rag, tool_use\), and none is named 'def"):
        has_chat_template(parse_source(str(folder)))
    several[0]["name"] = "default"
    file.write_text(json.dumps({**settings, "chat_template": several}), encoding="utf-8")
    assert has_chat_template(parse_source(str(folder)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_that_gives_no_finite_probabilities_says_nothing(
    tiny_model: Path, tokenizer: Any, number: float, temperature: float
) -> None:
    import torch

    model = load_model(parse_source(str(tiny_model)))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(number)
    encoded = encode_prompt(tokenizer, load_template("dialogue").render(["Be kind."], "Hello?", "completion"), 900)
    with pytest.raises(UserError, match=r"tiny-llama' gives no finite probabilities.*learning_rate.*float16"):
        generate_batch(model, tokenizer, [encoded], max_new_tokens=4, temperature=temperature)
