"""Folders of models: what is refused before it is loaded, what a fingerprint covers, and copies that are not believed."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sami_train import model_files, models
from sami_train.config import Recipe
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.generation import encode_prompt, generate, prompt_room
from sami_train.model_files import check_unused, file_digest
from sami_train.models import (
    Source,
    check_source,
    load_model,
    load_tokenizer,
    parse_source,
    resolved,
    source_fingerprint,
)
from sami_train.prompts import Prompt, load_template
from sami_train.weights import Weights


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return shutil.copytree(tiny_model, tmp_path / "model")


def rewrite(file: Path, **changes: Any) -> None:
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**known, **changes}), encoding="utf-8")


def problem(folder: Path, *, load: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        (load_model if load else check_source)(parse_source(str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- What is refused


@pytest.mark.parametrize("kind", ["LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaModel"])
def test_a_reward_model_is_no_language_model(folder: Path, kind: str) -> None:
    """With tied embeddings nothing of a language model is missing in it."""
    config = transformers.LlamaConfig.from_pretrained(folder, tie_word_embeddings=True)
    getattr(transformers, kind)(config).save_pretrained(folder)
    for load in (False, True):
        assert f"names the architecture {kind}, which is no causal language model" in problem(folder, load=load)


def test_weights_without_a_place_are_refused(folder: Path) -> None:
    """The architecture's name was lost, or is wrong: the head for rewards, biases, an adapter would be left out in silence."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    save_file({**state, "score.weight": torch.zeros(1, 32)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert "no place for (score.weight)" in problem(folder, load=True)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("score.weight", True),
        ("v_head.summary.weight", True),
        ("model.layers.0.self_attn.q_proj.bias", True),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", True),
        ("model.layers.2.enorm.weight", False),
        ("vision_tower.encoder.layers.0.weight", False),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),
        ("mtp.layers.0.weight", False),
    ],
)
def test_parts_that_a_language_model_does_without(name: str, refused: bool) -> None:
    if refused:
        with pytest.raises(UserError, match="another model"):
            check_unused([name], 2, "m")
    else:
        check_unused([name], 2, "m")


def test_an_adapter_is_called_one(folder: Path) -> None:
    rewrite(folder / "adapter_config.json", base_model_name_or_path="org/base")
    (folder / "adapter_model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    expected = "this is an adapter (LoRA), not a whole model; its base is 'org/base'; merge it into its base"
    assert expected in problem(folder)
    (folder / "model.safetensors").unlink()
    assert expected in problem(folder)
    (folder / "config.json").unlink()
    assert expected in problem(folder)


def test_weights_under_other_names_are_not_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
    assert "has consolidated.safetensors, and neither model.safetensors nor" in problem(folder)


def test_a_shard_that_is_missing_is_named(folder: Path) -> None:
    rewrite(
        folder / "model.safetensors.index.json", weight_map={"a": "model-1.safetensors", "b": "model-2.safetensors"}
    )
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    assert "model-2.safetensors: this weights file, which model.safetensors.index.json names" in problem(folder)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"a":' * 100_000, "[]", "1", "{", "\udcff", '{"a": 1' + "0" * 5000 + "}"]
)
def test_a_config_that_is_no_config_is_one_sentence(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "config.json" in problem(folder)
    assert problem(folder).endswith("restore the model folder")


@pytest.mark.parametrize(
    "header", [b"[" * 100_000, b'{"a":' * 50_000, b"[1]", b'{"a": {"data_offsets": []}}', b'{"a": 1}']
)
def test_a_safetensors_header_that_is_none_is_one_sentence(folder: Path, header: bytes) -> None:
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "not a whole safetensors file" in problem(folder)


def test_a_header_of_gigabytes_is_not_read(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write((3 << 30).to_bytes(8, "little"))
        file.truncate(4 << 30)
    assert "not a whole safetensors file" in problem(folder)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}},
            "set trust_remote_code: true if you trust that code",
        ),
        ({"model_type": "not_yet_known"}, "update transformers, or name another model"),
        ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "name a causal language model"),
    ],
)
def test_the_advice_fits_the_reason(folder: Path, changes: dict[str, Any], advice: str) -> None:
    rewrite(folder / "config.json", **changes)
    assert problem(folder, load=True).endswith(advice)


def test_a_model_without_fused_attention_is_loaded_and_not_trained(folder: Path) -> None:
    settings = {"vocab_size": 259, "n_embd": 32, "n_head": 4, "n_layer": 1, "rotary_dim": 4, "eos_token_id": 2}
    transformers.GPTJForCausalLM(transformers.GPTJConfig(**settings)).save_pretrained(folder)
    source = parse_source(str(folder))
    assert check_source(source) is None
    assert load_model(source).config._attn_implementation == "eager"
    recipe = Recipe(name="x", learning_rate=1.0, batch_size=1, use_peft=True)
    with pytest.raises(UserError, match=r"^a gptj model cannot be trained here .* use a Llama"):
        Weights(recipe, source, World()).check_adapters()


def test_a_model_that_is_let_go_is_gone(folder: Path) -> None:
    """Modules in cycles, as sharding puts them, stay until they are collected, which may be late."""
    source = parse_source(str(folder))
    weights = Weights(Recipe(name="x", learning_rate=1.0, batch_size=1), source, World())
    model = weights.for_sampling(source)
    object.__setattr__(model, "itself", model)
    alive = weakref.ref(model)
    del model
    gc.disable()
    try:
        weights.release()
        assert alive() is None
    finally:
        gc.enable()


# --- Fingerprints


@pytest.mark.parametrize(
    "name",
    [
        *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("vocab.json", "merges.txt", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
        *("chat_template.json", "additional_chat_templates/rag.jinja", "modeling_mine.py", "parts/attention.py"),
    ],
)
def test_all_that_loading_reads_is_in_the_fingerprint(folder: Path, name: str) -> None:
    source = parse_source(str(folder))
    before = source_fingerprint(source)
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert source_fingerprint(source) != before


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "optimizer.pt", ".cache/x.py", "adapter/adapter_model.safetensors"]
)
def test_what_loading_does_not_read_changes_nothing(folder: Path, name: str) -> None:
    source = parse_source(str(folder))
    before = source_fingerprint(source)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("x")
    assert source_fingerprint(source) == before


def test_every_byte_of_large_weights_counts_and_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_files, "SETTLED", -1.0)
    file = tmp_path / "model.safetensors"
    with file.open("wb") as handle:
        handle.truncate(70 << 20)
    seen = {file_digest(file)}
    (note,) = (tmp_path / "cache" / "hashes").iterdir()
    note.write_text("f" * 64)
    assert file_digest(file) == "f" * 64, "remembered"
    with file.open("r+b") as handle:
        handle.seek(1_000_003)
        handle.write(b"x")
    seen.add(file_digest(file))
    assert len(seen) == 2
    assert "f" * 64 not in seen
    note.write_text("torn")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    assert file_digest(file) in seen, "without a cache that can be written"


def test_what_was_just_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within a file system's tick has the same times."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "x").write_bytes(b"0" * (2 << 20))
    file_digest(tmp_path / "x")
    assert not (tmp_path / "cache").exists()


def test_a_hub_model_is_the_same_before_and_after_it_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning finds out the commit that 'main' is, and keeps to it when 'main' has moved."""
    commits = ["a" * 40, "b" * 40]
    cached: dict[str, Path] = {}

    def download(name: str, file: str, *, revision: str, etag_timeout: float) -> str:
        place = tmp_path / "snapshots" / commits[0] / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("{}")
        cached[revision] = place
        return str(place)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _, __, revision: str(cached[revision]) if cached else None
    )
    source = Source("hub", "org/name")
    monkeypatch.setattr(models, "_COMMITS", {})
    planned = source_fingerprint(source)
    commits.reverse()
    monkeypatch.setattr(models, "_COMMITS", {})
    assert resolved(source).revision == "a" * 40
    assert source_fingerprint(source) == planned


def test_a_hub_out_of_reach_leaves_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_COMMITS", {})
    source = Source("hub", "org/that-is-not-here")
    assert resolved(source) == source
    assert len(source_fingerprint(source)) == 32


# --- Embedded models, with a stand-in for the conversion


@pytest.fixture
def embedded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Source:
    gguf = tmp_path / "weights.gguf"
    gguf.write_bytes(b"weights")
    one = models.EMBEDDED["smollm2-135m-instruct"]
    changed = replace(one, packages=("json",), sha256=file_digest(gguf))
    monkeypatch.setitem(models.EMBEDDED, one.name, changed)
    monkeypatch.setattr(models, "_gguf_file", lambda *_: gguf)
    monkeypatch.setattr(models, "_convert", lambda _, out: shutil.copytree(folder, out))
    return Source("embedded", one.name)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_converted_copy_that_was_changed_is_made_again(embedded: Source, name: str) -> None:
    place = Path(models.local_folder(embedded))
    made = (place / name).read_bytes()
    (place / name).write_bytes(made[:-1] + b"?")
    assert (Path(models.local_folder(embedded)) / name).read_bytes() == made
    (place / name).unlink()
    assert (Path(models.local_folder(embedded)) / name).read_bytes() == made


def test_other_weights_in_the_package_are_refused(embedded: Source, tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(b"others")
    with pytest.raises(UserError, match="not the weights that belong to the embedded model 'smollm2"):
        models.local_folder(embedded)


def test_every_embedded_model_has_a_hash() -> None:
    assert all(len(model.sha256) == 64 for model in models.EMBEDDED.values())


# --- The beginning of a text, and the context


def test_a_text_begins_as_the_tokenizer_begins_it(folder: Path) -> None:
    """OPT's kind has an end that is the beginning too, Yi's a beginning that is not put, others begin with several tokens."""
    from tokenizers import processors

    tokenizer = load_tokenizer(parse_source(str(folder)))
    prompt = Prompt("completion", (("text", "Hello"),))
    hello = tokenizer("Hello", add_special_tokens=False).input_ids
    found = {}
    for name, before in {"yi": "", "llama": "<s> ", "opt": "</s> ", "glm": "<pad> <s> "}.items():
        post = processors.TemplateProcessing(
            single=f"{before}$A", special_tokens=[(t, n) for n, t in enumerate(("<pad>", "<s>", "</s>"))]
        )
        tokenizer.backend_tokenizer.post_processor = post
        tokenizer.bos_token = "</s>" if name == "opt" else "<s>"
        found[name] = encode_prompt(tokenizer, prompt, 100).ids[: -len(hello)]
    assert found == {"yi": [], "llama": [1], "opt": [2], "glm": [0, 1]}
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert encode_prompt(tokenizer, prompt, 100).ids == [1, *hello], "an end that it would put too is left to the model"


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prompt_leaves_its_response_room_in_the_context(folder: Path, kind: str) -> None:
    tokenizer = load_tokenizer(parse_source(str(folder)))
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=259, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=2
        )
        model: Any = transformers.GPT2LMHeadModel(config).eval()
    else:
        model = load_model(parse_source(str(folder)))
        model.config.max_position_embeddings = 64
    prompt = load_template("dialogue").render([], "word " * 40, "chat")
    prompt = Prompt("chat", (("user", "Say: \x00body\x00"),), prompt.body)
    (made,) = generate(model, tokenizer, [prompt], max_new_tokens=8, max_prompt_tokens=256)
    assert made[0].prompt.truncated
    assert 40 < len(made[0].prompt.ids) <= 56
    with pytest.raises(UserError, match=r"reads 64 tokens at most, and max_new_tokens is 64, .* lower max_new_tokens"):
        prompt_room(model.config, 64, 256)
    assert prompt_room(model.config, 8, 50) == 50
