"""The model of a plan: its configuration, found without its weights, and its parameters, counted on the meta device."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sami_train.adapters import add_adapter, require_adapters
from sami_train.config import Recipe
from sami_train.distributed import layers_of
from sami_train.errors import UserError
from sami_train.models import Source, check_reach, local_folder, parse_source, quiet_transformers
from sami_train.yamlfile import read_yaml

TABLE = Path(__file__).resolve().parent.parent / "shapes.yaml"


@dataclass(frozen=True, eq=False)
class Architecture:
    """A model's configuration (of transformers), and where it was found. Equal to itself alone."""

    name: str
    config: Any
    found: str

    @property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def tied(self) -> bool:
        """Whether the head's matrix is that of the embeddings."""
        return bool(self.config.get_text_config().tie_word_embeddings)

    @property
    def attention_width(self) -> int:
        """Heads times the size of a head: the length of a token's query, in numbers."""
        text = self.config.get_text_config()
        size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return int(text.num_attention_heads * size)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters. Tied weights count once.

    `layer` is the largest decoder layer, `root` everything outside the layers; `embedding` the input embeddings; `head` the
    output matrix (the embeddings' own when tied). `active` are those of the layers that a token runs through (of a mixture of
    experts only the chosen ones). `trained` are the sizes of the trained tensors, one by one.
    """

    total: int
    layer: int
    root: int
    embedding: int
    head: int
    active: int
    trained: tuple[int, ...]
    layer_trainable: int
    root_trainable: int
    embedding_trainable: int
    adapters: int

    @property
    def trainable(self) -> int:
        return sum(self.trained)


def find_architecture(model: str) -> Architecture:
    """The configuration of an embedded model, a folder, a hub model in the cache, one of `shapes.yaml`, or one of the hub.

    Raises:
        UserError: there is none, or transformers does not know it.
    """
    source = parse_source(model)
    if source.kind != "hub":
        return Architecture(model, _read(source, local_folder(source)), "its config.json")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source.name, "config.json", revision=source.revision or "main")
    if isinstance(cached, str):
        return Architecture(model, _read(source, str(Path(cached).parent)), "its config.json in the cache")
    known = read_yaml(TABLE, what="table of shapes").data
    if source.name in known:
        from transformers import AutoConfig

        fields = known[source.name]["config"]
        return Architecture(model, AutoConfig.for_model(**fields), f"{TABLE.name}, from {known[source.name]['source']}")
    check_reach(source)
    return Architecture(model, _read(source, source.name), "its config.json on the hub")


def _read(source: Source, place: str) -> Any:
    from transformers import AutoConfig

    quiet_transformers()
    try:
        return AutoConfig.from_pretrained(place, revision=source.revision or "main")
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")[:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the configuration of the model '{source}' cannot be read ({reason}); name a folder with its config.json, "
            "or check the id and the network"
        ) from None


def build(config: Any, recipe: Recipe, dtype: Any) -> Any:
    """The model of a configuration on whatever device is set, prepared as the trainer prepares it, in training mode."""
    from transformers import AutoModelForCausalLM

    quiet_transformers()
    try:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    except ValueError:
        raise UserError(
            f"transformers has no causal language model of the type '{config.model_type}'; name another model"
        ) from None
    model.tie_weights()
    if recipe.use_peft:
        require_adapters(recipe)
        add_adapter(model, recipe)
    if recipe.freeze_embeddings:
        model.get_input_embeddings().weight.requires_grad_(False)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


MATTERING = (
    *("method", "beta", "contrast", "principles_per_constitution", "batch_size", "gradient_queries"),
    *("constitutions_per_query", "query_contrast", "per_device_train_batch_size", "gradient_caching"),
    *("gradient_checkpointing", "bf16"),
    *("master_dtype", "freeze_embeddings", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("temperature", "top_p"),
)
"""Fields on which the model and what a micro-step holds depend."""


def essential(recipe: Recipe) -> Recipe:
    """The recipe with every other field at its default, so that recipes that differ in those alone are planned once."""
    return Recipe(name="", learning_rate=1.0, **{field: getattr(recipe, field) for field in MATTERING})


def count_parameters(architecture: Architecture, recipe: Recipe) -> Parameters:
    """Count the parameters of a recipe's model on the meta device, adapters added and embeddings frozen as it says."""
    return _count(architecture, essential(recipe))


@functools.lru_cache(maxsize=64)
def _count(architecture: Architecture, recipe: Recipe) -> Parameters:
    import torch

    with torch.device("meta"):
        model = build(architecture.config, recipe, torch.float32)
    inside = {id(p) for layer in layers_of(model) for p in layer.parameters()}
    layers = [list(layer.parameters()) for layer in layers_of(model)]
    largest = max(layers, key=_size)
    outside = [p for p in model.parameters() if id(p) not in inside]
    embedding = model.get_input_embeddings().weight
    adapters = [p for name, p in model.named_parameters() if ".lora_" in name]
    return Parameters(
        total=_size(model.parameters()),
        layer=_size(largest),
        root=_size(outside),
        embedding=embedding.numel(),
        head=model.get_output_embeddings().weight.numel(),
        active=_active(model, inside),
        trained=tuple(p.numel() for p in model.parameters() if p.requires_grad),
        layer_trainable=_size(p for p in largest if p.requires_grad),
        root_trainable=_size(p for p in outside if p.requires_grad),
        embedding_trainable=embedding.numel() if embedding.requires_grad else 0,
        adapters=_size(adapters),
    )


def _size(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _active(model: Any, inside: set[int]) -> int:
    """Parameters of the layers that one token goes through: of every bank of experts, the chosen share."""
    text = model.config.get_text_config()
    chosen = getattr(text, "num_experts_per_tok", None) or 1
    experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or chosen
    count = 0
    for name, parameter in model.named_parameters():
        if id(parameter) in inside:
            share = chosen / experts if ".experts." in name else 1
            count += math.ceil(parameter.numel() * share)
    return count
