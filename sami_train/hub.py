"""Whether the Hugging Face hub can be asked. Where it cannot, its libraries are kept to what is on this machine.

Left to themselves they try every file six times, for half a minute, before they say that there is no network.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 10.0
"""Seconds that the hub has to answer."""
REMEMBERED = 60.0
"""Seconds for which its answer, or its silence, is taken to last."""

_last: dict[str, tuple[float, str | None]] = {}


def silence() -> str | None:
    """Why the hub cannot be asked, None where it answers. Asked at most once a minute."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    address = constants.ENDPOINT
    asked, why = _last.get(address, (-REMEMBERED, None))
    if time.monotonic() - asked >= REMEMBERED:
        try:
            get_session().head(address, timeout=PATIENCE)
            why = None
        except Exception as error:  # noqa: BLE001 - whatever the client of this version raises
            reason = str(error).strip().partition("\n")[0].strip(" .")[:200] or type(error).__name__
            why = f"{address} does not answer: {reason}"
        _last[address] = (time.monotonic(), why)
    return why


@contextmanager
def asking() -> Iterator[str | None]:
    """What is asked of the hub inside, only its cache is asked where it is silent; gives the reason then."""
    why = silence()
    with offline(why is not None):
        yield why


@contextmanager
def offline(wanted: bool = True) -> Iterator[None]:
    """Keep the Hugging Face libraries off the network. They read HF_HUB_OFFLINE once, at import, so that setting it is
    not enough: their copies of it are set too, and all is put back afterwards."""
    if not wanted:
        yield
        return
    import huggingface_hub.constants

    places = [
        huggingface_hub.constants,
        *([sys.modules["datasets.config"]] if "datasets.config" in sys.modules else []),
    ]
    before = [module.HF_HUB_OFFLINE for module in places]
    variable = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    for module in places:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(places, before, strict=True):
            module.HF_HUB_OFFLINE = value
        if variable is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = variable
