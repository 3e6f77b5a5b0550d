"""A step rehearsed: the trainer's own code on tensors that have shapes and no storage, its live bytes counted.

The model is built with two and with three of its layers; what every further layer adds is the difference, so that a model of 80
layers takes no longer than a small one. Counted are the storages that operators return, until they are freed: what autograd keeps,
what layers recompute, copies in other number formats, masks, logits and gradients on their way. Not counted is what happens inside
one operator (workspaces of matrix products).
"""

from __future__ import annotations

import copy
import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sami_train import decoder
from sami_train.baselines import queries_at_once, require_trl, sequences_of_a_query
from sami_train.config import Recipe
from sami_train.distributed import World
from sami_train.errors import UserError
from sami_train.logprobs import pack, token_logprobs
from sami_train.norms import closed_form_norms
from sami_train.planning.shape import Architecture, build, count_parameters, essential
from sami_train.rotations import closed_form_rotations
from sami_train.step import compute, lean

if TYPE_CHECKING:
    from torch import Tensor

Step = Callable[[Any, "Meter"], None]
"""A micro-step of a model, whose bytes a meter counts."""

FEW, MORE = 2, 3
"""Layers of the two rehearsals."""


@dataclass(frozen=True)
class Lengths:
    """Tokens of a prompt and of a response."""

    prompt: int
    response: int


@dataclass(frozen=True)
class Training:
    """Most bytes that live at once in every part of a micro-step, besides weights, gradients and moments.

    `forward`: through the layers. `head`: log-probabilities and their backward pass, everything kept for the layers' still
    there. `layers`: their backward pass. `embeddings`: the gradients of the embeddings (0 where they are frozen, or sparse). `kept`
    is what lives when the layers' backward pass begins: what autograd holds for it, masks and copies of weights included. `mask` is
    the block mask's part of `forward`.
    """

    forward: int
    head: int
    layers: int
    embeddings: int
    kept: int
    mask: int


def rehearse_training(
    architecture: Architecture, recipe: Recipe, lengths: Lengths, kind: str, sharded: bool
) -> Training:
    """Rehearse a micro-step of the longest examples on a device of a kind (cpu, cuda), its gradients already there.

    `sharded`: the weights come gathered in the number format of the computation, as `fully_shard` gives them.
    """
    return _training(architecture, essential(recipe), lengths, kind, sharded)


@functools.lru_cache(maxsize=64)
def _training(architecture: Architecture, recipe: Recipe, lengths: Lengths, kind: str, sharded: bool) -> Training:
    rehearsed = _sami_step if recipe.method == "sami" else _trl_step
    step, mask = rehearsed(architecture, recipe, lengths, kind, sharded)

    def watch(model: Any, meter: Meter) -> None:
        def decoded(_: Any, __: Any, output: Any) -> None:
            meter.begin("head")
            output.last_hidden_state.register_hook(lambda _: meter.begin("layers"))

        def embedded(_: Any, __: Any, output: Tensor) -> None:
            if output.requires_grad:
                output.register_hook(lambda _: meter.begin("embeddings"))

        model.get_decoder().register_forward_hook(decoded)
        model.get_input_embeddings().register_forward_hook(embedded)

    dtype = _dtype(recipe, sharded)
    found = _for_all_layers(
        architecture.layers,
        lambda layers: _peaks(_shortened(architecture, layers), recipe, dtype, kind, watch, step),
    )
    if recipe.method == "sami" and not sharded and recipe.master_dtype == "float32":
        found.pop("embeddings", None)  # their gradient is a sparse one: see `gradients_in_place`
    if found.get("embeddings") and architecture.tied:
        # The two gradients of a tied matrix are summed in place, but into a third one where tensors only pretend.
        found["embeddings"] -= count_parameters(architecture, recipe).embedding * dtype.itemsize
    return Training(
        forward=found["forward"],
        head=found["head"],
        layers=found["layers"],
        embeddings=found.get("embeddings", 0),
        kept=found["kept"],
        mask=mask,
    )


def _mask_kinds(architecture: Architecture) -> int:
    """Kinds of masks that a forward pass has at once: one for every kind of layer."""
    return len(set(getattr(architecture.config.get_text_config(), "layer_types", None) or ["one"]))


def _sami_step(
    architecture: Architecture, recipe: Recipe, lengths: Lengths, kind: str, sharded: bool
) -> tuple[Step, int]:
    """The trainer's own micro-step, and the bytes of its block masks."""
    height = 1 if recipe.caches_gradients else recipe.prompts_per_query
    responses = [[1] * lengths.response] * recipe.constitutions_per_query
    packed = pack([([[1 + i] * lengths.prompt for i in range(height)], responses)] * recipe.per_device_train_batch_size)
    world = World(size=2 if sharded else 1)

    def step(model: Any, meter: Meter) -> None:
        meter.begin("forward")
        with lean(model, sharded=sharded):
            if not sharded and (embeddings := model.get_input_embeddings()).weight.requires_grad:
                embeddings.sparse = False  # tensors that only pretend are never sparse
            with compute(recipe, world):
                tokens = token_logprobs(model, packed)
            tokens.sum().backward()

    masked = decoder.needs_mask(kind, architecture.config)
    size = len(packed.input_ids) * len(packed.input_ids[0]) ** 2
    return step, _mask_kinds(architecture) * size if masked else 0


def _trl_step(
    architecture: Architecture, recipe: Recipe, lengths: Lengths, kind: str, sharded: bool
) -> tuple[Step, int]:
    """A micro-step of the methods dpo and sft, through TRL's own head, and the bytes of its padding masks.

    On GPUs TRL's head has kernels that work in the logits' place; they are left out, since they hold nothing.
    """
    import torch

    require_trl()
    from trl.kernels import chunked_logprob
    from trl.trainer.utils import add_fused_lm_head

    rows = sequences_of_a_query(recipe) * queries_at_once(recipe)
    whole = lengths.prompt + lengths.response
    outputs = {"dpo": ("log_probs", "entropy", "mean_logits", "is_top1"), "sft": ("log_probs", "entropy", "is_top1")}

    def nothing(*_: Any, **__: Any) -> None:
        return

    def step(model: Any, meter: Meter) -> None:
        if "forward" not in vars(model):
            add_fused_lm_head(model, outputs=outputs[recipe.method])
        meter.begin("forward")
        ids = torch.ones(rows, whole, dtype=torch.long)
        mask = _generation_mask(model.config, rows, whole, whole)
        with ExitStack() as stack:
            if kind == "cuda":
                for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                    stack.enter_context(_instead(chunked_logprob, name, nothing))
            with compute(recipe, World()):
                found = model(input_ids=ids, attention_mask=mask, labels=ids, use_cache=False, fused_lm_head=True)
            found.log_probs.sum().backward()

    return step, _mask_kinds(architecture) * rows * whole**2


@dataclass(frozen=True)
class Sampling:
    """Most bytes that live at once while responses are sampled, besides the weights: reading the prompts, writing.

    `cache` is the part of `writing` that keys and values of all layers take when the responses are complete.
    """

    prompts: int
    writing: int
    cache: int


def rehearse_sampling(
    architecture: Architecture, recipe: Recipe, lengths: Lengths, kind: str, dtype: str, batch: int
) -> Sampling:
    """Rehearse a batch of sampling with transformers: its prompts read at once, and the last token written."""
    plain = essential(recipe.model_copy(update={"use_peft": False, "gradient_checkpointing": False}))
    return _sampling(architecture, plain, lengths, kind, dtype, batch)


@functools.lru_cache(maxsize=64)
def _sampling(
    architecture: Architecture, recipe: Recipe, lengths: Lengths, kind: str, dtype: str, batch: int
) -> Sampling:
    import torch
    from transformers import DynamicCache

    whole = lengths.prompt + lengths.response
    short = _shortened(architecture, min(FEW, architecture.layers))
    size = torch.finfo(getattr(torch, dtype)).bits // 8
    peaks = {}
    for name, held, new in (("prompts", 0, lengths.prompt), ("writing", whole - 1, 1)):

        def step(model: Any, meter: Meter, held: int = held, new: int = new) -> None:
            meter.begin("all")
            cache = DynamicCache(config=model.config)
            _fill(cache, model.config, batch, held, getattr(torch, dtype))
            with torch.no_grad():
                logits = model(
                    input_ids=torch.ones(batch, new, dtype=torch.long),
                    position_ids=torch.ones(batch, new, dtype=torch.long),
                    attention_mask=_generation_mask(model.config, batch, new, held + new),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                _choose(logits, recipe)

        measured = _peaks(short, recipe, getattr(torch, dtype), kind, lambda *_: None, step, times=1)["all"]
        layers = _cache_bytes(short, batch, held + new, size)
        peaks[name] = measured - layers + _cache_bytes(architecture.config, batch, held + new, size)
    return Sampling(peaks["prompts"], peaks["writing"], _cache_bytes(architecture.config, batch, whole, size))


def _choose(logits: Tensor, recipe: Recipe) -> Tensor:
    """The next tokens, with the copies that `generate` makes on the way."""
    scores = logits.float().clone()
    if not recipe.temperature:
        return scores.argmax(-1)
    ordered, places = (scores / recipe.temperature).sort()
    unlikely = (ordered.softmax(-1).cumsum(-1) <= 1 - recipe.top_p).scatter(1, places, places > 0)
    return scores.masked_fill(unlikely, -float("inf")).softmax(-1).multinomial(1)


def _generation_mask(config: Any, batch: int, new: int, whole: int) -> Any:
    import torch

    kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
    window = getattr(config.get_text_config(), "sliding_window", None)
    lengths = {kind: _kept(whole, window if kind == "sliding_attention" else None, new) for kind in kinds}
    masks = {kind: torch.ones(batch, 1, new, length, dtype=torch.bool) for kind, length in lengths.items()}
    return masks or torch.ones(batch, 1, new, _kept(whole, window, new), dtype=torch.bool)


def _kept(whole: int, window: int | None, new: int) -> int:
    """Keys that `new` tokens at the end of `whole` look at: a cache with a window holds one token less than it."""
    return whole if window is None or new == whole else min(whole, window - 1 + new)


def _fill(cache: Any, config: Any, batch: int, length: int, dtype: Any) -> None:
    import torch

    if not length:
        return
    for number, (kept, heads, size) in enumerate(_cached_layers(config, length)):
        key = torch.zeros(batch, heads, kept, size, dtype=dtype)
        cache.update(key, torch.zeros_like(key), number)


def _cached_layers(config: Any, length: int) -> Iterator[tuple[int, int, int]]:
    """For every layer: tokens whose keys and values are kept, heads, and the size of a head."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    window = getattr(text, "sliding_window", None)
    kinds = getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"] * (
        text.num_hidden_layers
    )
    for kind in kinds:
        kept = min(length, window - 1) if kind == "sliding_attention" and window else length
        yield kept, getattr(text, "num_key_value_heads", None) or text.num_attention_heads, size


def _cache_bytes(config: Any, batch: int, length: int, size: int) -> int:
    return sum(2 * batch * kept * heads * width * size for kept, heads, width in _cached_layers(config, length))


def _dtype(recipe: Recipe, sharded: bool) -> Any:
    import torch

    return torch.bfloat16 if recipe.bf16 and sharded else getattr(torch, recipe.master_dtype)


def _shortened(architecture: Architecture, layers: int) -> Any:
    """The configuration with fewer layers, one of every kind among the first."""
    config = copy.deepcopy(architecture.config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if kinds := getattr(text, "layer_types", None):
        distinct = list(dict.fromkeys(kinds))
        text.layer_types = (distinct * layers)[:layers]
    return config


def _for_all_layers(layers: int, measure: Callable[[int], dict[str, int]]) -> dict[str, int]:
    """What all layers take: measured, or laid on the line through two measurements."""
    if layers <= MORE:
        return measure(layers)
    few, more = measure(FEW), measure(MORE)
    return {name: few[name] + (more[name] - few[name]) * (layers - FEW) // (MORE - FEW) for name in few}


def _peaks(
    config: Any,
    recipe: Recipe,
    dtype: Any,
    kind: str,
    watch: Callable[[Any, Meter], None],
    step: Callable[[Any, Meter], None],
    times: int = 2,
) -> dict[str, int]:
    """Bytes over what the model and its gradients take, by phase, in the last of `times` steps."""
    import torch
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
    )

    with torch.device("meta"):
        model = build(config, recipe, dtype)
    with closed_form_norms(model), closed_form_rotations(model):
        pass  # finds out what they are, by numbers
    with FakeTensorMode(), ExitStack() as stack:
        _pretend(model)
        meter = Meter()
        for tensor in (*model.parameters(), *model.buffers()):
            meter.add(tensor)
        watch(model, meter)
        stack.enter_context(meter.counting())
        stack.enter_context(_attention(kind))
        for _ in range(times):
            meter.restart()
            try:
                step(model, meter)
            except (DataDependentOutputException, DynamicOutputShapeException):
                raise UserError(
                    f"models of the type '{config.model_type}' look at their numbers on the way, so their steps cannot be "
                    "rehearsed without them; take a short run and watch it"
                ) from None
        return {name: peak - meter.start for name, peak in meter.peaks.items()}


def _pretend(model: Any) -> None:
    """Put tensors that pretend to lie on the CPU in the place of the model's weights and buffers, tied ones staying one."""
    import torch

    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
                    is_weight = isinstance(tensor, torch.nn.Parameter)
                    made[tensor] = torch.nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
                own[name] = made[tensor]


class Meter:
    """Counts the bytes of live storages, and their most in every phase; "kept" is what there is when that of the layers begins."""

    def __init__(self) -> None:
        self.live, self.start = 0, 0
        self.peaks: dict[str, int] = {}
        self._phase = ""
        self._known: dict[int, int] = {}

    def begin(self, phase: str) -> None:
        """What lives from now on belongs to another phase."""
        self._phase = phase
        self.peaks[phase] = max(self.peaks.get(phase, 0), self.live)
        if phase == "layers":
            self.peaks["kept"] = self.live

    def restart(self) -> None:
        """Begin again: what lives now is not counted."""
        self.start, self.peaks, self._phase = self.live, {}, ""

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, once, for as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        self._known[key] = storage.nbytes()
        self.live += storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        if self._phase:
            self.peaks[self._phase] = max(self.peaks[self._phase], self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._known.pop(key)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what every operator returns."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        from torch.utils._pytree import tree_leaves

        meter = self

        class Counting(TorchDispatchMode):  # type: ignore[misc]
            def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                result = _run(operator, args, kwargs or {})
                for leaf in tree_leaves(result):
                    if isinstance(leaf, torch.Tensor):
                        meter.add(leaf)
                return result

        with Counting():
            yield


def _run(operator: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator. torch knows the shapes of a grouped matrix product in bfloat16 only, so it is asked in that format."""
    import torch

    if operator is not torch.ops.aten._grouped_mm.default or args[0].dtype == torch.bfloat16:
        return operator(*args, **kwargs)
    left, right, *rest = args
    return operator(left.bfloat16(), right.bfloat16(), *rest, **kwargs).to(left.dtype)


@contextmanager
def _attention(kind: str) -> Iterator[None]:
    """Attention as the device computes it: by parts or under a mask, which by the kernel that takes one; without storage torch
    would take the plain one."""
    from torch.nn import functional

    ours: Any = _attend_on_cpu if kind == "cpu" else _attend_on_gpu
    with (
        _instead(functional, "scaled_dot_product_attention", ours),
        _instead(decoder, "BY_PARTS", decoder.BY_PARTS & {kind}),
    ):
        yield


@contextmanager
def _instead(place: Any, name: str, value: Any) -> Iterator[None]:
    """Another value under a module's name for a while."""
    before = getattr(place, name)
    setattr(place, name, value)
    try:
        yield
    finally:
        setattr(place, name, before)


def _attend_on_cpu(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None, **_: Any
) -> Tensor:
    import torch

    query, key, value = _lowered(query, key, value)
    found: tuple[Tensor, ...] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=_added(attn_mask, query), scale=scale
    )
    return found[0]


def _attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, scale: float | None = None, **_: Any
) -> Tensor:
    """The memory-efficient kernel, the only fused one that takes a mask; it wants its rows aligned to 8 numbers."""
    import torch

    query, key, value = _lowered(query, key, value)
    mask = _added(attn_mask, query)
    if mask is not None:
        width = mask.shape[-1]
        if width % 8:
            mask = torch.nn.functional.pad(mask, (0, 8 - width % 8))[..., :width]
        mask = mask.expand(*query.shape[:3], width)
    keeps = torch.is_grad_enabled() and query.requires_grad
    found: tuple[Tensor, ...] = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, mask, keeps, 0.0, False, scale=scale
    )
    return found[0]


def _lowered(*inputs: Tensor) -> list[Tensor]:
    """Attention's inputs in autocast's number format, where it is on."""
    import torch

    if not torch.is_autocast_enabled("cpu"):
        return list(inputs)
    return [tensor.to(torch.get_autocast_dtype("cpu")) for tensor in inputs]


def _added(mask: Tensor | None, query: Tensor) -> Tensor | None:
    """A mask of booleans as numbers to add, which is what the kernels take."""
    import torch

    return torch.zeros_like(mask, dtype=query.dtype) if mask is not None and mask.dtype == torch.bool else mask
