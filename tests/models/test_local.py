"""The back end that runs models in this process, on a tiny real one: batches, prompts, stops, probabilities."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness.models.base import Completion, LocalBackend, Request, Sampling
from harness.models.local import TransformersBackend
from sami_train.constitutions import load_principle_set
from sami_train.errors import UserError
from sami_train.logprobs import response_logprobs_naive
from sami_train.models import Source
from sami_train.prompts import BODY, Prompt, Style, load_template

BOS = 1
LINES = ["End the text with a question to the reader.", "Be very brief and write only one short sentence."]
GREEDY = Sampling(max_new_tokens=12, max_prompt_tokens=1000)


def opened(folder: Path, batch_size: int | None = None, name: str = "tiny") -> TransformersBackend:
    torch.set_num_threads(1)
    return TransformersBackend(
        name, Source("folder", str(folder)), device="cpu", dtype="float32", batch_size=batch_size
    )


@pytest.fixture(scope="module")
def backend(tiny_model: Path) -> Iterator[TransformersBackend]:
    found = opened(tiny_model, 3)
    yield found
    found.close()
    assert found.model is None


def requests(style: Style = "completion", n: int = 8) -> list[Request]:
    template = load_template("dialogue")
    return [
        Request(f"r{i}", template.render(LINES[:1], f"Tell me {'more ' * (7 * i % 11)}of {i}.", style))
        for i in range(n)
    ]


def made(
    backend: TransformersBackend, todo: list[Request], sampling: Sampling = GREEDY, **options: set[str]
) -> dict[str, Completion]:
    return {c.id: c for batch in backend.generate(todo, sampling, **options) for c in batch}


def next_token_probabilities(backend: TransformersBackend, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return backend.model(input_ids=torch.tensor([ids])).logits[0, -1].float().softmax(-1)


def test_a_prompt_has_the_room_that_the_response_leaves(backend: TransformersBackend) -> None:
    assert backend.prompt_room(0) == 4096
    assert backend.prompt_room(96) == 4000
    assert isinstance(backend, LocalBackend)


def test_a_prompt_fits_when_it_does_so_without_its_body(backend: TransformersBackend) -> None:
    prompt = Prompt("completion", (("text", f"Before {BODY} after"),), "word " * 50)
    tokens = len(backend.encode(prompt.with_body(""), 1000))
    assert backend.fits(prompt, 1000)
    assert backend.fits(prompt, tokens + 5)
    assert not backend.fits(prompt, tokens - 1)


# --- Generation


def test_a_response_has_the_beginning_that_its_prompt_ended_with(backend: TransformersBackend) -> None:
    template = load_template("tldr")
    prompts = [template.render(LINES[:1], f"Tell me of {n}.", "completion", prefill=True) for n in range(3)]
    begun = made(backend, [Request(str(n), prompt) for n, prompt in enumerate(prompts)])
    bare = [Prompt("completion", prompt.messages, prompt.body) for prompt in prompts]
    plain = made(backend, [Request(str(n), prompt) for n, prompt in enumerate(bare)])
    for key, completion in begun.items():
        assert plain[key].text
        assert completion.text.startswith("The post")
        assert completion.text.endswith(plain[key].text)
        assert completion.prompt == plain[key].prompt


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_the_batch_size_changes_no_text(tiny_model: Path, backend: TransformersBackend, style: Style) -> None:
    """Greedy in float32, prompts of unlike lengths: padding on the left leaves every text as it is alone."""
    todo = requests(style)
    assert len({len(backend.encode(r.prompt, 1000)) for r in todo}) > 4
    found = [made(opened(tiny_model, size), todo) for size in (1, 3, 8)]
    assert found[0].keys() == {r.id for r in todo}
    assert len({c.text for c in found[0].values()}) > 1
    assert found[0] == found[1] == found[2]


def test_greedy_is_the_likeliest_token_each_time(backend: TransformersBackend) -> None:
    request = requests()[3]
    ids = backend.encode(request.prompt, 1000)
    text: list[int] = []
    for _ in range(GREEDY.max_new_tokens):
        text.append(int(next_token_probabilities(backend, ids + text).argmax()))
        if text[-1] == 2:
            break
    found = made(backend, requests())[request.id]
    assert found.text == backend.tokenizer.decode(text, skip_special_tokens=True).strip()
    assert found.n_prompt_tokens == len(ids)
    assert found.prompt == request.prompt.text


def test_sampling_follows_the_seed(backend: TransformersBackend) -> None:
    def texts(seed: int) -> list[str]:
        sampling = Sampling(max_new_tokens=12, max_prompt_tokens=1000, temperature=1.0, seed=seed)
        return [c.text for c in made(backend, requests(), sampling).values()]

    assert texts(1) == texts(1) != texts(2)


def test_whole_batches_that_are_done_are_skipped(backend: TransformersBackend) -> None:
    todo = requests()
    batches = [[c.id for c in batch] for batch in backend.generate(todo, GREEDY)]
    assert sorted(map(len, batches)) == [2, 3, 3]
    assert list(backend.generate(todo, GREEDY, done={r.id for r in todo})) == []
    rest = [[c.id for c in batch] for batch in backend.generate(todo, GREEDY, done=set(batches[0]))]
    assert rest == batches[1:]


def test_a_batch_that_is_partly_done_is_made_again_as_it_was(backend: TransformersBackend) -> None:
    """Sampled, so that another composition would give other texts."""
    sampling = Sampling(max_new_tokens=12, max_prompt_tokens=1000, temperature=1.0, seed=3)
    whole = list(backend.generate(requests(), sampling))
    left_out = whole[1][0].id
    done = {c.id for batch in whole for c in batch} - {left_out}
    assert list(backend.generate(requests(), sampling, done=done)) == [whole[1]]


def test_a_stop_string_ends_the_text(backend: TransformersBackend) -> None:
    todo = requests()
    free = made(backend, todo)
    ends = {
        i: at for i, c in free.items() if (at := next((n for n, x in enumerate(c.text) if n > 1 and x.isascii()), 0))
    }
    assert ends
    for i, end in list(ends.items())[:3]:
        mark = free[i].text[end]
        sampling = Sampling(max_new_tokens=12, max_prompt_tokens=1000, stop=("never said", mark))
        found = made(backend, todo, sampling)[i]
        assert found.text == free[i].text[: free[i].text.index(mark)].strip()
        assert found.finish_reason == "stop"
        assert found.n_tokens < free[i].n_tokens


def test_a_text_that_runs_out_of_tokens_says_so(backend: TransformersBackend) -> None:
    found = made(backend, requests(), Sampling(max_new_tokens=2, max_prompt_tokens=1000)).values()
    assert {(c.finish_reason, c.n_tokens) for c in found if c.finish_reason == "length"} == {("length", 2)}
    assert all(c.n_tokens <= 2 for c in found)


# --- Prompts


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_exactly_one_bos(backend: TransformersBackend, style: Style) -> None:
    """The chat template of this model writes its own, a completion prompt has none by itself."""
    ids = backend.encode(requests(style)[0].prompt, 1000)
    assert ids[0] == BOS
    assert ids.count(BOS) == 1


def test_two_bos_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "twice"
    shutil.copytree(tiny_model, folder)
    backend = opened(folder)
    backend.tokenizer.chat_template = f"<s>{backend.tokenizer.chat_template}"
    with pytest.raises(UserError, match="two BOS tokens; the chat template and the tokenizer both add one"):
        made(backend, requests("chat"))
    with pytest.raises(UserError, match="two BOS"):
        backend.choice_probabilities([requests("chat")[0].prompt], ("A", "B"))
    assert made(backend, requests("completion"))


@pytest.mark.parametrize("style", ["completion", "chat"])
@pytest.mark.parametrize("task", ["dialogue", "summarization"])
def test_a_long_prompt_loses_of_its_query_alone(backend: TransformersBackend, style: Style, task: str) -> None:
    principles = load_principle_set("verifiable").select(task, "learned")[:3]
    lines = [p.definition for p in principles]
    query = " ".join(f"word{n}" for n in range(400))
    template = load_template(task)
    prompt = template.render(lines, query, style)
    empty = len(backend.encode(template.render(lines, "", style), 10_000))
    limit = empty + 50
    found = made(
        backend, [Request("long", prompt), *requests(style, 2)], Sampling(max_new_tokens=4, max_prompt_tokens=limit)
    )
    long = found["long"]
    assert long.truncated
    assert limit - 10 < long.n_prompt_tokens <= limit
    assert all(line in long.prompt for line in lines)
    assert "word0" in long.prompt
    assert "word399" not in long.prompt
    before, after = prompt.text.split(query)
    assert before in long.prompt
    assert after.strip() in long.prompt
    assert not found["r0"].truncated


def test_a_prompt_that_cannot_fit_says_what_to_do(backend: TransformersBackend) -> None:
    with pytest.raises(
        UserError,
        match=r"40 are allowed, so nothing of the query fits; raise .*max_prompt_tokens or use fewer principles",
    ):
        made(backend, requests(), Sampling(max_new_tokens=4, max_prompt_tokens=40))


# --- Probabilities


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_choice_probabilities_are_those_of_the_single_prompts(backend: TransformersBackend, style: Style) -> None:
    prompts = [r.prompt for r in requests(style, 11)]
    found = backend.choice_probabilities(prompts, (" A", " B") if style == "completion" else ("A", "B"))
    assert len(found) == 11
    a, b = (backend.tokenizer(letter, add_special_tokens=False).input_ids[0] for letter in "AB")
    for prompt, pair in zip(prompts, found, strict=True):
        whole = next_token_probabilities(backend, backend.encode(prompt, 1000))
        assert math.isclose(sum(pair), 1, abs_tol=1e-6)
        assert pair[0] == pytest.approx(float(whole[a] / (whole[a] + whole[b])), abs=1e-5)
    assert len({round(first, 4) for first, _ in found}) > 3, "what is asked makes a difference"


def test_a_space_that_begins_every_choice_counts_for_none(backend: TransformersBackend) -> None:
    """This tokenizer writes ' A' as a space and a letter; reading the space would make every comparison a tie."""
    space = backend.tokenizer(" A", add_special_tokens=False).input_ids
    assert len(space) == 2
    assert backend.choice_probabilities([requests()[0].prompt], (" A", " B")) == backend.choice_probabilities(
        [requests()[0].prompt], ("A", "B")
    )
    with pytest.raises(UserError, match=r"model 'tiny': its tokenizer begins 'A1' and 'A2' alike.*name another model"):
        backend.choice_probabilities([requests()[0].prompt], ("A1", "A2"))


def test_a_judge_prompt_that_cannot_fit_costs_only_itself(backend: TransformersBackend) -> None:
    short, long = (
        Prompt("completion", (("text", f"Which? {BODY}"),), "word " * 400),
        Prompt("completion", (("text", "x" * 300),)),
    )
    found = backend.choice_probabilities([short, long, short], ("A", "B"), max_prompt_tokens=200)
    assert found[1] == (0.0, 0.0)
    assert sum(found[0]) == pytest.approx(1)
    assert found[0] == pytest.approx(found[2], abs=1e-5)


def test_the_context_of_the_model_bounds_judge_prompts(tiny_model: Path) -> None:
    backend = opened(tiny_model)
    backend.model.config.max_position_embeddings = 100
    fits, does_not = (Prompt("completion", (("text", "x" * n),)) for n in (99, 100))  # and the BOS
    one, two = backend.choice_probabilities([fits, does_not], ("A", "B"))
    assert sum(one) == pytest.approx(1)
    assert two == (0.0, 0.0)


@pytest.mark.parametrize("style", ["completion", "chat"])
def test_log_probabilities_are_those_of_the_definition(backend: TransformersBackend, style: Style) -> None:
    prompts = [backend.encode(r.prompt, 1000) for r in requests(style, 3)]
    responses = [backend.response_ids(text, style) for text in ("Yes.", "No, thank you!", "It is long, " * 4)]
    found = backend.logprob_sums(prompts, responses)
    with torch.inference_mode():
        naive = response_logprobs_naive(backend.model, prompts, responses, reduction="sum")
    assert torch.allclose(torch.tensor(found), naive, atol=1e-3)
    assert max(max(row) for row in found) < -1
    by_hand = 0.0
    for end, token in enumerate(responses[1]):
        by_hand += math.log(float(next_token_probabilities(backend, prompts[2] + responses[1][:end])[token]))
    assert found[2][1] == pytest.approx(by_hand, abs=1e-3)


def test_a_response_begins_as_the_model_would_write_it(backend: TransformersBackend) -> None:
    assert backend.tokenizer.decode(backend.response_ids("Yes", "completion")) == " Yes"
    assert backend.tokenizer.decode(backend.response_ids("Yes", "chat")) == "Yes"


# --- What goes wrong


def test_a_json_schema_is_refused(backend: TransformersBackend) -> None:
    with pytest.raises(UserError, match="takes no JSON schema"):
        next(backend.generate([], Sampling(8, 64, json_schema={"type": "object"})))


def test_a_full_memory_says_what_to_do(backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(backend.model, "generate", full)
    monkeypatch.setattr(backend.model, "forward", full)
    expected = (
        r"too small for model 'tiny' .* set engine\.batch_size to a smaller number and run the same command again"
    )
    with pytest.raises(UserError, match=expected):
        made(backend, requests())
    with pytest.raises(UserError, match=expected):
        backend.choice_probabilities([requests()[0].prompt], ("A", "B"))


def test_a_folder_that_is_no_model_is_one_sentence(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"broken' cannot be loaded .*; restore"):
        opened(folder)


def test_a_begun_response_is_scored_after_the_prompt_without_its_beginning(tiny_model: Path, tmp_path: Path) -> None:
    from harness import run
    from harness.plan import LikelihoodUnit, build_plan
    from harness.rows import Generation, Likelihood
    from harness.spec import load_spec
    from harness.store import RowFile

    spec = f"""
name: begun
models: {{base: {{path: {tiny_model}, style: completion}}, chat: {{path: {tiny_model}, style: chat}}}}
tasks: {{tldr: {{task: tldr, limit: 2, template: tldr}}}}
principles: {{sets: [summarization], splits: [learned]}}
judges: {{own: {{kind: llm, model: chat}}}}
comparisons: [{{a: base, b: chat}}]
sampling: {{max_new_tokens: 6, max_prompt_tokens: 1400}}
measures: {{steerability: false, infonce: 1, relevance: false}}
engine: {{threads: 1, dtype: float32}}
output: {tmp_path / "run"}
"""
    (tmp_path / "spec.yaml").write_text(spec, encoding="utf-8")
    loaded = load_spec(tmp_path / "spec.yaml")
    run(loaded, quiet=True)
    texts = RowFile(tmp_path / "run/generations/base/tldr.jsonl", Generation).read()
    assert all(row.text.startswith("The post") for row in texts.values() if row.text)
    (stage,) = [s for s in build_plan(loaded).stages if s.kind == "likelihood" and s.model == "base"]
    rows = RowFile(tmp_path / "run/likelihoods/base/tldr.jsonl", Likelihood).read()
    model = opened(tiny_model)
    for unit in stage.units:
        assert isinstance(unit, LikelihoodUnit)
        prompts = [model.encode(response.prompt.without_prefill(), 1400) for response in unit.responses]
        assert all(model.tokenizer.decode(prompt).endswith("Summary:") for prompt in prompts)
        said = [model.response_ids(texts[response.id].text or "\n", "completion") for response in unit.responses]
        for found, expected in zip(rows[unit.id].logprob_sums, model.logprob_sums(prompts, said), strict=True):
            assert found == pytest.approx(expected, rel=1e-4)
