"""The Hugging Face hub out of reach: one sentence soon, and what is on this machine is used."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from sami_train import hub, models
from sami_train.errors import UserError
from sami_train.models import Source, load_model, load_tokenizer, resolved

HERE = Source("hub", "org/here")


@pytest.fixture(autouse=True)
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing known of the hub, nothing in its cache, and the libraries may ask it."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "_last", {})
    monkeypatch.setattr(models, "_COMMITS", {})


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.usefixtures("refused")
def test_a_model_out_of_reach_is_one_sentence_soon(caplog: pytest.LogCaptureFixture) -> None:
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        load_tokenizer(Source("hub", "org/elsewhere"))
    assert time.monotonic() - start < 5
    assert "'org/elsewhere' is not on this machine and cannot be had from the Hugging Face hub (http" in str(
        caught.value
    )
    assert "does not answer" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [record for record in caplog.records if "Retrying" in record.getMessage()]


@pytest.mark.usefixtures("refused")
def test_a_model_in_the_cache_is_used_without_the_hub(tmp_path: Path, tiny_model: Path) -> None:
    commit = "c" * 40
    folder = tmp_path / "hub" / "models--org--here"
    shutil.copytree(tiny_model, folder / "snapshots" / commit)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    start = time.monotonic()
    assert resolved(HERE).revision == commit
    assert load_tokenizer(HERE).pad_token == "<pad>"
    assert load_model(HERE).config.hidden_size == 32
    assert time.monotonic() - start < 10
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_does_not_answer_is_waited_for_once(
    listening: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listening.getsockname()[1]}")
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    assert "does not answer" in (hub.silence() or "")
    start = time.monotonic()
    hub.silence()
    assert time.monotonic() - start < 0.1


def test_silence_is_not_remembered_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    address = "http://127.0.0.1:1"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setitem(hub._last, address, (time.monotonic() - hub.REMEMBERED, None))
    assert hub.silence() is not None


def test_who_wants_no_network_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.silence() == "HF_HUB_OFFLINE is set"


def test_offline_puts_all_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with hub.offline():
        assert constants.HF_HUB_OFFLINE
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ
