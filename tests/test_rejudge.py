"""Scoring a run again, and judging it again by others: a real tiny model, and a local server whose verdicts depend on the seed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from harness import run
from harness.cli import main
from harness.plan import JUDGING_VERSION, VerdictUnit
from harness.protocols import PAPER
from harness.rejudge import parse_judge, prepare
from harness.report.markdown import escape, render_markdown
from harness.rescore import ladder, plan_of_run, rescore
from harness.rows import Verdict
from harness.runner import judge_again
from harness.spec import Spec, load_spec
from harness.store import RowFile
from sami_train.errors import UserError

SPEC = """
name: tiny
models:
  base: {{path: {model}, style: completion}}
  instruct: {{path: {model}, style: chat}}
tasks:
  dialogue: {{task: hh-rlhf, source: bundled, limit: 3}}
  summarization: {{task: tldr, source: bundled, limit: 2}}
principles: {{sets: [verifiable]}}
judges:
  verifiable: {{kind: verifiable}}
comparisons: [{{a: instruct, b: base}}]
sampling: {{max_new_tokens: 8, max_prompt_tokens: 1400}}
measures: {{steerability: false, swapped: true, relevance: false}}
engine: {{threads: 1, device: cpu}}
output: {output}
"""


@pytest.fixture(scope="module")
def finished(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run whose models' weights are gone when it is done."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(tiny_model, folder / "model")
    (folder / "tiny.yaml").write_text(SPEC.format(model=folder / "model", output=folder / "run"))
    before = os.environ.get("HARNESS_CACHE")
    os.environ["HARNESS_CACHE"] = str(folder / "cache")
    run(str(folder / "tiny.yaml"), quiet=True)
    (folder / "model").rename(folder / "put-away")
    yield folder / "run"
    if before is None:
        del os.environ["HARNESS_CACHE"]
    else:
        os.environ["HARNESS_CACHE"] = before


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run, elsewhere."""
    return Path(shutil.copytree(finished, tmp_path / "elsewhere"))


def results(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "results.json").read_text())
    return {key: value for key, value in found.items() if key != "created"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- Scoring again


def test_the_rows_alone_give_the_results(finished: Path, copy: Path) -> None:
    assert not (finished.parent / "model").exists()
    assert rescore(finished) == results(finished)
    assert rescore(copy) == results(finished)


def test_the_control_is_in_the_results(finished: Path) -> None:
    rows = results(finished)["comparisons"]
    assert [row["swapped"]["n"] for row in rows if row["task"] == "all"] == [5, 5]
    file = finished / "verdicts" / "verifiable" / "swapped" / "instruct-vs-base.jsonl"
    for row in RowFile(file, Verdict).rows():
        assert row.kind == "swapped"
        assert row.judged_by
        assert not set(row.details["principles"]) & {part[:-1] for part in row.constitution_id.split(".")}


def test_a_run_that_is_not_finished_is_scored_as_far_as_it_is(copy: Path) -> None:
    (copy / "results.json").unlink()
    file = copy / "verdicts" / "verifiable" / "instruct-vs-base.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[: len(lines) // 2]))
    before = contents(copy)
    found = rescore(copy)
    assert any(row["n"] < row["n_expected"] for row in found["comparisons"])
    assert 0 < found["interim"]["n"] < found["interim"]["of"] == 5
    assert found["quality"]["unscored_rate"] == 0, "what is still to be judged is not unscored"
    assert contents(copy) == before, "nothing is written"


def test_the_ladder_ends_at_the_results_and_says_what_moves(finished: Path) -> None:
    found = ladder(finished)
    assert [protocol["name"] for protocol in found["protocols"]] == ["paper", "paper+swap", "corrected"]
    paper = rescore(finished, PAPER)["comparisons"]
    for row, corrected, published in zip(found["rows"], results(finished)["comparisons"], paper, strict=True):
        by_name = row["protocols"]
        assert (row["task"], row["split"], row["judge"]) == (corrected["task"], corrected["split"], corrected["judge"])
        assert by_name["corrected"]["win_rate"] == corrected["win_rate"]
        assert by_name["corrected"]["ci_low"] == corrected["ci_low"]
        assert by_name["paper"]["win_rate"] == published["win_rate"]
        assert by_name["paper"]["moved"] is None
        step = by_name["corrected"]["win_rate"] - by_name["paper+swap"]["win_rate"]
        assert by_name["corrected"]["moved"] == pytest.approx(step)


def test_verdicts_by_the_rules_of_another_version_are_told_and_kept(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rescore(copy)["not_counted"] == []
    monkeypatch.setattr("harness.plan.JUDGING_VERSION", JUDGING_VERSION + 1)
    before = contents(copy)
    found = rescore(copy)
    n = sum(row["verdicts"]["expected"] for row in found["comparisons"] if row["task"] != "all")
    (row,) = found["not_counted"]
    place = {"judge": "verifiable", "a": "instruct", "b": "base", "n": n}
    assert row == {
        "why": "rules",
        "n": 2 * n,
        "of": [{**place, "kind": "win_rate"}, {**place, "kind": "swapped"}],
        "note": f"{2 * n} verdicts in this run (verifiable: {n} on instruct against base, {n} on instruct against base, swapped) "
        "were made by other rules than this version, or this specification, judges by, and are not counted: judge again with "
        "'harness rejudge RUN --judge verifiable', or score the run with the version that made them.",
    }
    assert {comparison["n"] for comparison in found["comparisons"]} == {0}
    assert ladder(copy)["not_counted"] == [row]
    assert render_markdown(found).count(escape(row["note"])) == 1
    for protocol in ("corrected", "all"):
        assert main(["score", str(copy), "--protocol", protocol]) == 0
        assert row["note"] in " ".join(capsys.readouterr().out.split())
    assert contents(copy) == before, "nothing is written"

    again = judge_again(*prepare(copy, ["verifiable"]), quiet=True).results
    assert again["not_counted"] == []
    assert [c["win_rate"] for c in again["comparisons"]] == [c["win_rate"] for c in rescore(copy)["comparisons"]]
    for name, rows in before.items():
        assert not name.startswith("verdicts") or (copy / name).read_bytes().startswith(rows), "no row is lost"


def test_only_what_is_still_missing_is_told(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.plan.JUDGING_VERSION", JUDGING_VERSION + 1)
    judge_again(*prepare(copy, ["verifiable"]), quiet=True)
    file = copy / "verdicts" / "verifiable" / "instruct-vs-base.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))  # as if stopped before the last one
    (row,) = rescore(copy)["not_counted"]
    assert row["note"].startswith(
        "1 verdict in this run (verifiable: 1 on instruct against base) was made by other rules"
    )


def test_verdicts_on_other_responses_are_told_apart(copy: Path) -> None:
    spec = copy / "spec.yaml"
    spec.write_text(spec.read_text().replace("max_new_tokens: 8", "max_new_tokens: 9"))
    (row,) = rescore(copy)["not_counted"]
    assert row["why"] == "responses"
    assert "on other responses, or by other rules, than are planned now" in row["note"]
    assert "harness run" in row["note"]


def test_score_prints_a_protocol_or_all(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(finished), "--protocol", "paper", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["protocol"] == "paper"
    assert main(["score", str(finished), "--protocol", "all"]) == 0
    assert "paper+swap: both orders; unscored counts as a tie" in " ".join(capsys.readouterr().out.split())
    assert main(["score", str(finished)]) == 0
    assert "instruct against base" in capsys.readouterr().out


def test_what_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", str(tmp_path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    with pytest.raises(UserError, match=r"no spec\.yaml here"):
        plan_of_run(tmp_path)


# --- Judging again


def test_another_judge_joins_the_run_and_nothing_is_generated(copy: Path, tiny_model: Path) -> None:
    generations = contents(copy / "generations")
    plan, names = prepare(copy, [f"own={tiny_model}"], limit=1, epochs=2)
    assert names == ["own"]
    outcome = judge_again(plan, names, quiet=True)
    assert contents(copy / "generations") == generations
    assert set(outcome.results["judges"]) == {"verifiable", "own"}
    assert outcome.results["judges"]["own"]["model"] == "own"
    row = next(r for r in outcome.results["comparisons"] if (r["judge"], r["task"]) == ("own", "dialogue"))
    assert (row["n"], row["verdicts"]["expected"], row["judge_noise"]["n_pairs"]) == (1, 8, None)
    (stability, _) = outcome.results["rank_stability"]
    assert (stability["judge_1"], stability["judge_2"]) == ("verifiable", "own")
    assert [pair["n"] for pair in stability["pairs"]] == [2]
    before = [row for row in outcome.results["comparisons"] if row["judge"] == "verifiable"]
    assert before == results(copy)["comparisons"][: len(before)]

    verdicts = contents(copy / "verdicts")
    again, names = prepare(copy, [f"own={tiny_model}"])  # the same judge, as it stands in the run's spec.yaml now
    assert judge_again(again, names, quiet=True).results["comparisons"] == outcome.results["comparisons"]
    assert contents(copy / "verdicts") == verdicts


def test_a_judge_that_was_trained_again_in_place_judges_again(copy: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "judge"))

    def verdicts() -> dict[str, Any]:
        outcome = judge_again(*prepare(copy, [f"jd={folder}"]), quiet=True)
        assert outcome.results["not_counted"] == []
        rows = RowFile(copy / "verdicts" / "jd" / "instruct-vs-base.jsonl", Verdict).read().values()
        return {row.id: (row.fingerprint, row.details) for row in rows}

    first = verdicts()
    assert verdicts() == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 10.0}))
    second = verdicts()
    assert second.keys() == first.keys()
    assert all(second[i][0] != first[i][0] for i in first)
    assert any(second[i][1] != first[i][1] for i in first)


def test_a_writer_that_is_another_model_now_does_not_judge_its_responses(copy: Path, tiny_model: Path) -> None:
    model = Path(plan_of_run(copy).spec.models["instruct"].path or "")
    shutil.copytree(tiny_model, model)
    try:
        judge_again(*prepare(copy, ["own=instruct"], limit=1), quiet=True)
        (model / "generation_config.json").write_text("{}")
        with pytest.raises(UserError, match="'instruct' wrote responses of this run and is another one now"):
            prepare(copy, ["own=instruct"])
    finally:
        shutil.rmtree(model)


def test_a_run_by_its_first_specification_tells_of_the_judges_that_joined(
    copy: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = results(copy)
    judge_again(*prepare(copy, [f"own={tiny_model}"], limit=1), quiet=True)
    capsys.readouterr()
    first = tmp_path / "first.yaml"
    first.write_text(SPEC.format(model=tiny_model, output=copy))
    assert run(load_spec(str(first))).results["judges"].keys() == before["judges"].keys()
    said = " ".join(capsys.readouterr().err.split())
    assert "the folder has verdicts of own, which the specification does not name" in said
    assert (copy / "verdicts" / "own" / "instruct-vs-base.jsonl").is_file()
    found = judge_again(*prepare(copy, [f"own={tiny_model}"], limit=1), quiet=True)
    assert set(found.results["judges"]) == {"verifiable", "own"}


def test_a_stopped_judging_goes_on(copy: Path, tiny_model: Path) -> None:
    shutil.copytree(copy, copy.with_name("whole"))
    whole = judge_again(*prepare(copy.with_name("whole"), [f"own={tiny_model}"]), quiet=True).results
    judge_again(*prepare(copy, [f"own={tiny_model}"]), quiet=True)
    file = copy / "verdicts" / "own" / "instruct-vs-base.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:5]) + lines[5][:30])  # torn, as a kill leaves it
    found = judge_again(*prepare(copy, ["own"]), quiet=True).results
    assert found["comparisons"] == whole["comparisons"]
    ids = [json.loads(line)["id"] for line in file.read_text().splitlines()]
    assert sorted(ids) == sorted(json.loads(line)["id"] for line in lines)


def test_responses_must_be_complete(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copy / "generations" / "base" / "dialogue.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert main(["rejudge", str(copy), "--judge", "verifiable"]) == 2
    said = capsys.readouterr().err
    assert "base on dialogue has 11 of 12 responses" in said
    assert "harness run" in said


# --- A judge that does not say the same twice


class Judge:
    """A server that speaks OpenAI's protocol; its verdict is a coin that depends on the prompt and the seed."""

    def __init__(self) -> None:
        self.seeds: list[int] = []
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                judge.seeds.append(body["seed"])
                said = json.dumps([body["messages"], body["seed"]])
                word = "AB"[hashlib.sha256(said.encode()).digest()[0] % 2]
                text = (
                    json.dumps({"reasoning": "A coin.", "verdict": word})
                    if "response_format" in body
                    else f"A coin.\nVerdict: {word}"
                )
                answer = {
                    "id": "x", "object": "chat.completion", "created": 0, "model": "coin",
                    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
                    "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
                }  # fmt: skip
                data = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


@pytest.fixture
def coin() -> Iterator[Judge]:
    judge = Judge()
    yield judge
    judge.server.shutdown()
    judge.server.server_close()


def test_a_judge_is_asked_again_with_other_seeds_and_its_noise_is_told(
    copy: Path, tmp_path: Path, coin: Judge, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openai")
    file = tmp_path / "coin.yaml"
    file.write_text(
        f"kind: llm\nepochs: 3\nmodel: {{path: openai/coin, style: chat, base_url: '{coin.address}', max_retries: 0}}\n"
    )
    assert main(["rejudge", str(copy), "--judge", str(file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    row = next(r for r in found["comparisons"] if (r["judge"], r["task"], r["split"]) == ("coin", "all", "learned"))
    noise = row["judge_noise"]
    assert 0 < noise["agreement"] < 1
    assert noise["sd"] > 0
    assert 0 < noise["share"] <= 1
    assert row["n"] == 5, "the query is the unit, however often it is judged"
    plan = plan_of_run(copy)
    stage = plan.stage("judge", judge="coin", measure="win_rate")
    asked = {u.repeat for u in stage.units if isinstance(u, VerdictUnit)}
    assert asked == {0, 1, 2}
    assert set(coin.seeds) == {0, 1, 2}
    rows = list(RowFile(copy / stage.path, Verdict).rows())
    assert {row.repeat for row in rows} == {0, 1, 2}
    assert main(["score", str(copy)]) == 0
    said = capsys.readouterr().out
    assert "Judged more than once" in said
    assert "verifiable (1) and coin (2)" in said


def test_how_an_api_is_asked_can_be_said_for_judges(copy: Path, tmp_path: Path, coin: Judge) -> None:
    pytest.importorskip("openai")
    file = tmp_path / "coin.yaml"
    file.write_text(f"kind: llm\nmodel: {{path: openai/coin, style: chat, base_url: '{coin.address}'}}\n")
    plan, names = prepare(copy, [str(file), "verifiable"], api={"max_connections": 3, "timeout_s": 9.0})
    model = plan.spec.models[str(plan.spec.judges["coin"].model)]
    assert (model.max_connections, model.max_retries, model.timeout_s) == (3, 6, 9.0)
    assert names == ["coin", "verifiable"]
    assert main(["rejudge", str(copy), "--judge", str(file), "--max-connections", "1", "--limit", "1", "--quiet"]) == 0
    assert "max_connections: 1" in (copy / "spec.yaml").read_text()


def test_a_judge_on_another_server_is_recorded_with_its_address(copy: Path, coin: Judge) -> None:
    """Only OPENAI_BASE_URL led a judge there, and no record said so."""
    pytest.importorskip("openai")
    command = ["rejudge", str(copy), "--judge", "openai/coin", "--base-url", coin.address, "--limit", "1", "--quiet"]
    assert main(command) == 0
    assert f"base_url: {coin.address}" in (copy / "spec.yaml").read_text()
    assert main(command) == 0, "the same command goes on"


def test_an_address_needs_a_judge_that_is_named_by_its_path(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rejudge", str(copy), "--judge", "verifiable", "--base-url", "http://localhost:1/v1"]) == 2
    assert "--base-url is for judges named by a path" in capsys.readouterr().err


def test_options_of_apis_are_refused_where_no_judge_is_behind_one(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["rejudge", str(copy), "--judge", "verifiable", "--max-retries", "0"]) == 2
    assert "'max_retries' is of models behind an API" in capsys.readouterr().err


# --- What is typed for a judge


@pytest.fixture
def spec(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spec:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(SPEC.format(model=tiny_model, output=tmp_path / "run"))
    return load_spec("spec.yaml")


@pytest.mark.parametrize(
    ("text", "name", "kind", "path", "style"),
    [
        ("verifiable", "verifiable", "verifiable", None, None),
        ("openai/gpt-4.1-mini", "gpt-4.1-mini", "llm", "openai/gpt-4.1-mini", "chat"),
        ("mini=openai/gpt-4.1-mini", "mini", "llm", "openai/gpt-4.1-mini", "chat"),
        ("anthropic/claude-x", "claude-x", "llm", "anthropic/claude-x", "chat"),
        ("embedded/smollm2-135m-instruct", "smollm2-135m-instruct", "llm", "embedded/smollm2-135m-instruct", "chat"),
        ("gemma=embedded/gemma-3-270m", "gemma", "llm", "embedded/gemma-3-270m", "completion"),
    ],
)
def test_a_judge_in_few_words(spec: Spec, text: str, name: str, kind: str, path: str | None, style: str | None) -> None:
    found = parse_judge(text, spec)
    assert (found.name, found.judge.kind) == (name, kind)
    assert (found.model and found.model.path, found.model and found.model.style) == (path, style)


def test_a_model_of_the_run_judges_without_being_named_twice(spec: Spec, tiny_model: Path) -> None:
    found = parse_judge("instruct", spec)
    assert (found.name, found.judge.model, found.model) == ("instruct", "instruct", None)
    by_path = parse_judge(f"own={tiny_model}", spec)
    assert (by_path.judge.model, by_path.model) == ("instruct", None), "that path and style are there already"


def test_a_file_has_the_fields_of_a_judge(spec: Spec, tmp_path: Path) -> None:
    file = tmp_path / "strict.yaml"
    file.write_text("kind: llm\nlimit: 7\nmodel: {path: openai/x, style: chat, timeout_s: 5}\n")
    found = parse_judge("strict.yaml", spec)
    assert (found.name, found.judge.limit, found.judge.model) == ("strict", 7, "strict")
    assert found.model is not None
    assert found.model.timeout_s == 5
    assert parse_judge("other=strict.yaml", spec).name == "other"


def test_a_file_names_its_server_beside_the_model(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "served.yaml").write_text("kind: llm\nmodel: openai/x\nbase_url: http://localhost:8000/v1\n")
    found = parse_judge("served.yaml", spec)
    assert found.model is not None
    assert found.model.base_url == "http://localhost:8000/v1"


@pytest.mark.parametrize(
    ("address", "said"),
    [("http://me:secret@localhost/v1", "a user name, a password"), ("[1]", "'base_url': must be text")],
)
def test_an_address_of_a_file_holds_no_key(spec: Spec, tmp_path: Path, address: str, said: str) -> None:
    (tmp_path / "served.yaml").write_text(f"kind: llm\nmodel: openai/x\nbase_url: {address}\n")
    with pytest.raises(UserError, match=said):
        parse_judge("served.yaml", spec)


@pytest.mark.parametrize(
    ("text", "content", "words"),
    [
        ("instrukt", None, ["--judge instrukt", "no judge and no model", "'instruct'"]),
        ("=openai/x", None, ["not NAME=JUDGE"]),
        ("recorded/x", None, ["--judge recorded/x", "'recorded/x' has recorded answers", "name another model"]),
        ("gone.yaml", None, ["gone.yaml", "no such judge"]),
        ("j.yaml", "- llm\n", ["j.yaml:1", "mapping"]),
        ("j.yaml", "kind: llm\n", ["j.yaml", "needs 'model'"]),
        ("j.yaml", "kind: llm\nmodl: openai/x\n", ["j.yaml:2", "unknown key 'modl'", "'model'"]),
        ("j.yaml", "kind: llm\nmodel:\n  path: openai/x\n  timeout: 3\n", ["j.yaml:4", "unknown key 'timeout'"]),
        ("j.yaml", "kind: llm\nmodel: [x]\n", ["j.yaml:2", "'model'"]),
        ("verifiable=openai/x", None, ["another judge named 'verifiable'", "--judge NAME=openai/x"]),
    ],
)
def test_what_is_no_judge_is_one_sentence(
    spec: Spec, tmp_path: Path, text: str, content: str | None, words: list[str]
) -> None:
    if content is not None:
        (tmp_path / "j.yaml").write_text(content)
    with pytest.raises(UserError) as caught:
        parse_judge(text, spec)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_judge_of_another_form_is_another_judge(spec: Spec, tmp_path: Path) -> None:
    (tmp_path / "j.yaml").write_text("kind: llm\nmodel: instruct\n")
    there = spec.model_copy(update={"judges": {**spec.judges, "j": parse_judge("j.yaml", spec).judge}})
    assert parse_judge("j.yaml", there).name == "j"
    (tmp_path / "j.yaml").write_text("kind: llm\nmodel: instruct\nform: text\n")
    with pytest.raises(UserError, match="another judge named 'j'"):
        parse_judge("j.yaml", there)


def test_options_that_a_judge_of_the_run_has_otherwise_are_refused(copy: Path) -> None:
    with pytest.raises(UserError, match=r"--limit 1: the run's judge 'verifiable' has limit none"):
        prepare(copy, ["verifiable"], limit=1)


def test_a_judge_is_checked_before_anything_is_loaded(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = contents(copy)
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        prepare(copy, ["openai/gpt-x"])
    assert contents(copy) == before
