"""Packed rows on their way through a model's decoder, whose layers attend by them instead of by their places.

On the CPU they do by parts, elsewhere under a mask (`sami_train.attention`). How far each layer sees is learned from the model: the
mask functions of transformers that it calls are answered with signs of the rows, which its layers hand to the attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sami_train.attention import Given, Rows, by_parts, mask
from sami_train.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

BY_PARTS = frozenset({"cpu"})
"""Kinds of device on which segments are computed one by one."""


def hidden_states(
    model: Any, rows: Rows, input_ids: Sequence[Sequence[int]], position_ids: Sequence[Sequence[int]]
) -> Tensor:
    """The decoder's last hidden states of packed rows, (rows, width, size), attention going as their segments say.

    How far a layer sees is what the model itself asks of transformers' mask functions, whatever its configuration says.

    Raises:
        UserError: the model attends in a way that packed rows cannot.
    """
    import torch

    decoder, config = model.get_decoder(), model.config.get_text_config()
    _check(config)
    check_rotation(config, _longest(rows))
    _register()
    device = next(model.parameters()).device
    ids, positions = (torch.tensor(numbers, device=device) for numbers in (input_ids, position_ids))
    given = _Passing(rows, width=len(input_ids[0]), by_mask=goes_by_mask(model))
    token = _GIVEN.set(given)
    try:
        found: Tensor = decoder(
            input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), use_cache=False
        ).last_hidden_state
    except _NeedsMask:
        given.attended = 0
    finally:
        _GIVEN.reset(token)
        given.forget_masks()
    if not given.by_mask and given.attended < config.num_hidden_layers:
        _BY_MASK.add(type(decoder))
        return hidden_states(model, rows, input_ids, position_ids)
    if not given.asked:
        raise UserError(f"a {config.model_type} model makes its attention masks in a way of its own, {OTHERS}")
    return found


OTHERS = "which the packed step does not know; use a Llama, Mistral, Mixtral, Gemma or Qwen model"


def check_rotation(config: Any, longest: int) -> None:
    """Raises UserError where sequences of `longest` tokens change the rotation of their own positions (dynamic NTK, LongRoPE).

    In a packed row they would change it for all sequences, shorter ones among them.
    """
    said = getattr(config, "rope_parameters", None) or {}
    for rope in (said, *said.values()):
        kind = str(rope.get("rope_type", "")) if isinstance(rope, dict) else ""
        if "dynamic" in kind or kind == "longrope":
            original = rope.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = (original if kind == "longrope" else None) or config.max_position_embeddings
            if longest > limit:
                raise UserError(
                    f"sequences have {longest} tokens, and the model rotates positions otherwise ({kind}) in those of more than "
                    f"{limit}, which cannot be packed; lower max_prompt_tokens or max_new_tokens"
                )


class _NeedsMask(Exception):
    """A layer cannot be computed by parts."""


_GIVEN: ContextVar[_Passing | None] = ContextVar("rows on their way through a decoder", default=None)


def goes_by_mask(model: Any) -> bool:
    """Whether a model's rows are computed whole, under a mask, so that their cost grows with the square of their length."""
    return needs_mask(next(model.parameters()).device.type, model.config) or type(model.get_decoder()) in _BY_MASK


def needs_mask(kind: str, config: Any) -> bool:
    """Whether a device of a kind (cpu, cuda), or dropout of a model's attention weights, leaves no other way than the mask."""
    return kind not in BY_PARTS or bool(getattr(config.get_text_config(), "attention_dropout", 0.0))


_BY_MASK: set[type] = set()
"""Decoders that were seen to attend otherwise than by torch's fused attention as transformers calls it."""


@dataclass
class _Passing(Given):
    """Rows of a width on their way; `asked`: for a mask; `attended`: layers that were computed by parts."""

    width: int = 0
    by_mask: bool = False
    asked: bool = False
    attended: int = 0
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def forget_masks(self) -> None:
        """Let the masks go with the last layer that needs them: their signs name these rows, a cycle that keeps all of it alive."""
        self._masks.clear()

    def mask(self, function: Any, window: int | None, device: Any) -> Tensor:
        """What a layer gets that would have a mask of a function of transformers: that of the rows, or a sign of them."""
        import torch

        self.asked = True
        window = _window(function, window, _longest(self.rows))
        if window not in self._masks:
            if self.by_mask:
                self._masks[window] = mask(self.rows, self.width, window).to(device)
            else:
                sign = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)
                sign.sami_rows = self, window  # type: ignore[attr-defined]
                self._masks[window] = sign
        return self._masks[window]


def _longest(rows: Rows) -> int:
    """Tokens of the longest sequence of the rows."""
    return max(segment.end for segments in rows for segment in segments)


def _check(config: Any) -> None:
    if (found := config._attn_implementation) != "sdpa":
        raise UserError(
            f"the packed step needs attn_implementation='sdpa', and the {config.model_type} model was loaded with '{found}', as "
            "are those that have no other; use a Llama, Mistral, Mixtral, Gemma or Qwen model"
        )
    if getattr(config, "alibi", False):
        raise UserError(f"a {config.model_type} model with ALiBi counts places instead of positions, {OTHERS}")
    if unknown := _kinds(config) - {"full_attention", "sliding_attention"}:
        raise UserError(f"a {config.model_type} model has layers of the kind '{min(unknown)}', {OTHERS}")


def _kinds(config: Any) -> set[str]:
    """The kinds of a model's layers; none where it has one and does not name it."""
    return set(getattr(config, "layer_types", None) or ())


def _window(function: Any, window: int | None, longest: int) -> int | None:
    """The window of a mask function of transformers, None where sequences of up to `longest` tokens are not too long for it.

    Raises:
        UserError: it shows or hides something else than a window does.
    """
    import torch
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    window = None if window is None or window >= longest else window
    near = () if window is None else (window - 1, window, window + 1)
    with unset_fake_temporarily():  # a step that is only planned has no numbers
        places = sorted({0, 1, longest // 2, longest - 1, *near} & {*range(longest)})
        queries, keys = (torch.tensor(numbers, device="cpu") for numbers in (places, range(longest)))
        ahead = queries[:, None] - keys
        expected = ahead.ge(0) if window is None else ahead.ge(0) & ahead.lt(window)
        nothing = torch.zeros((), dtype=torch.long, device="cpu")
        try:
            same = torch.equal(function(nothing, nothing, queries[:, None], keys[None]).expand_as(expected), expected)
        except (RuntimeError, IndexError, TypeError):
            same = False
    if not same:
        raise UserError(f"the model has layers whose tokens see others than those before them, {OTHERS}")
    return window


def _register() -> None:
    """Let transformers' `sdpa` attention and masks, whoever's they are by now, go by rows where these are on their way."""
    from transformers import AttentionInterface, AttentionMaskInterface

    attention, masks = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]
    if not getattr(masks, "of_packed_rows", False):

        def make(*arguments: Any, **options: Any) -> Any:
            if (given := _GIVEN.get()) is None:
                return masks(*arguments, **options)
            return given.mask(options["mask_function"], options.get("local_size"), options.get("device", "cpu"))

        make.of_packed_rows = True  # type: ignore[attr-defined]
        AttentionMaskInterface.register("sdpa", make)
    if getattr(attention, "of_packed_rows", False):
        return

    def attend(
        module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> tuple[Tensor, Any]:
        rows: tuple[_Passing, int | None] | None = getattr(attention_mask, "sami_rows", None)
        if rows is None:
            if (given := _GIVEN.get()) is not None and not given.by_mask:
                raise _NeedsMask
            theirs: tuple[Tensor, Any] = attention(module, query, key, value, attention_mask, **options)
            return theirs
        if query.shape[-1] != value.shape[-1] or query.shape[2] != key.shape[2]:
            raise _NeedsMask
        given, window = rows
        given.attended += 1
        scale = options.get("scaling") or query.shape[-1] ** -0.5
        return by_parts(query, key, value, given, scale, window).transpose(1, 2), None

    attend.of_packed_rows = True  # type: ignore[attr-defined]
    AttentionInterface.register("sdpa", attend)
