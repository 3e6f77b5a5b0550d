"""The model in memory: loaded for sampling or for training, sharded where there are many processes, written at the end."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sami_train.adapters import add_adapter, merged_state, save_adapter
from sami_train.config import Recipe
from sami_train.distributed import World, shard, spread_weights, whole_state
from sami_train.errors import UserError
from sami_train.generation import prompt_room
from sami_train.models import Source, generation_settings, load_config, load_model, load_tokenizer


class Weights:
    """Holds one model at a time. A model that training has touched is not given out as the base again."""

    def __init__(
        self,
        recipe: Recipe,
        base: Source,
        world: World,
        *,
        trust_remote_code: bool = False,
        loading: Callable[[str, bool], None] = lambda *_: None,
    ) -> None:
        self.recipe, self.base, self.world = recipe, base, world
        self.trust_remote_code, self.loading = trust_remote_code, loading
        self.tokenizer = load_tokenizer(base, trust_remote_code=trust_remote_code)
        if recipe.style == "chat" and not self.tokenizer.chat_template:
            raise UserError(f"style: 'chat' needs a chat template, and '{base}' has none; set style: completion")
        config = load_config(base, trust_remote_code=trust_remote_code)
        self.max_prompt_tokens = prompt_room(config, recipe.max_new_tokens, recipe.max_prompt_tokens)
        self._model: Any = None
        self._holds: tuple[str, str] | None = None

    def for_sampling(self, source: Source) -> Any:
        """A model in evaluation mode; in bfloat16 where the recipe computes in it."""
        dtype = "bfloat16" if self.recipe.bf16 and self.world.size == 1 else self.recipe.master_dtype
        return self._load(source, dtype).eval()

    def for_training(self) -> Any:
        """The base with its master weights, adapters added and embeddings frozen as the recipe says, in evaluation mode.

        Raises:
            UserError: the weights that are to be trained are not of the recipe's `master_dtype`.
        """
        recipe = self.recipe
        model = self._load(self.base, recipe.master_dtype, adapters=recipe.use_peft).eval()
        self._holds = None
        if getattr(model, "hf_device_map", None):
            raise UserError(
                f"'{self.base}' does not fit one GPU, and training in one process needs it there; start the run with torchrun, "
                "a process for each GPU"
            )
        if self.world.size > 1:
            model.reshard()  # sampling leaves the root gathered, and it is the shards that must know what is frozen
        if recipe.freeze_embeddings:
            model.get_input_embeddings().weight.requires_grad_(False)
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if wrong := sorted({str(p.dtype) for p in self.trainable().values()} - {f"torch.{recipe.master_dtype}"}):
            raise UserError(
                f"the master weights of '{self.base}' are {wrong[0]}; training needs them in {recipe.master_dtype}"
            )
        return model

    def check_adapters(self) -> None:
        """Put the adapter into the model without its weights. Raises UserError where it does not go into it."""
        if self.recipe.use_peft:
            add_adapter(self._empty(load_config(self.base, trust_remote_code=self.trust_remote_code)), self.recipe)

    def check_no_dropout(self) -> None:
        """Raises UserError where the base has dropout of its own, under which two passes over a row disagree."""
        config = load_config(self.base, trust_remote_code=self.trust_remote_code).get_text_config()
        rates = {name: value for name, value in config.to_dict().items() if name.endswith(("dropout", "pdrop"))}
        if found := next((name for name, value in rates.items() if isinstance(value, float | int) and value > 0), None):
            raise UserError(
                f"gradient caching runs every row twice, which must agree, and '{self.base}' has {found}: {rates[found]}; set "
                "gradient_caching: false, or that to 0 in its config.json"
            )

    def trainable(self) -> dict[str, Any]:
        """The parameters that are trained, by name. Shards, where there are any: a forward without a backward pass leaves the
        root's weights gathered, and then the model's parameters are not those that the optimizer must hold."""
        if self.world.size > 1:
            self._model.reshard()
        return {name: p for name, p in self._model.named_parameters() if p.requires_grad}

    def release(self) -> None:
        """Let the model go, for the memory that it takes: a sharded one is in cycles, which only a collection ends."""
        self._model, self._holds = None, None
        gc.collect()
        if self.world.device_type == "cuda":
            import torch

            torch.cuda.empty_cache()

    def _load(self, source: Source, dtype: str, *, adapters: bool = False) -> Any:
        wanted = (str(source), dtype)
        sharded = self.world.size > 1  # adapters must be there before the weights are sharded
        if self._holds != wanted or (adapters and sharded):
            self.release()
            place = Path(source.name)
            name = str(source)
            if source.kind == "folder":  # the model of an iteration lies in iteration-N/model
                name = place.parent.name if place.name == "model" else place.name
            self.loading(name, False)
            self._model = self._read(source, dtype, adapters)
            self.loading(name, True)
        elif adapters:
            add_adapter(self._model, self.recipe)
        self._holds = wanted
        return self._model

    def _read(self, source: Source, dtype: str, adapters: bool) -> Any:
        """The model on this process. With many, the first one reads it and the others get their shards from it."""
        world = self.world
        if world.size == 1:
            model = load_model(source, dtype=dtype, device=world.device, trust_remote_code=self.trust_remote_code)
            if adapters:
                add_adapter(model, self.recipe)
            return model
        return self._read_sharded(source, dtype, adapters)

    def _empty(self, config: Any, dtype: str | None = None) -> Any:
        """The model of a configuration on the meta device, without weights."""
        import torch

        with torch.device("meta"):
            return _empty_model(config, dtype or self.recipe.master_dtype, self.trust_remote_code)

    def _read_sharded(self, source: Source, dtype: str, adapters: bool) -> Any:
        world, error, whole, config = self.world, None, None, None
        try:
            if world.main:
                whole = load_model(source, dtype=dtype, device="cpu", trust_remote_code=self.trust_remote_code)
                config = whole.config
        except UserError as reason:
            error = reason
        world.together(error)
        (config, *_) = world.gather(config)
        model = self._empty(config, dtype)
        for one in (model, whole):
            if adapters and one is not None:
                add_adapter(one, self.recipe)
        trained = {name: p.requires_grad for name, p in model.named_parameters()}
        shard(model, self.recipe, world)
        spread_weights(
            model,
            whole.state_dict() if whole is not None else {},
            dict(whole.named_buffers()) if whole is not None else {},
            world,
        )
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
        if whole is not None:
            model.generation_config = whole.generation_config
        (model.generation_config, *_) = world.gather(model.generation_config)
        return model

    def save(self, target: Path, summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> None:
        """Write the trained model, adapters merged, with tokenizer and model card; it gets its name by a rename, when whole.

        Gathered, where it is sharded, weight by weight in the first process's main memory, never on one device.

        Raises:
            UserError: the disk refuses.
        """
        from safetensors import SafetensorError

        recipe, model, world = self.recipe, self._model, self.world
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_disable()
        state = whole_state(model, world)
        work = target.with_name(f".{target.name}-being-written")
        error = None
        if world.main:
            shutil.rmtree(work, ignore_errors=True)
            try:
                exported = merged_state(self._empty(model.config), state, recipe) if recipe.use_peft else state
                self._export(model, exported, work)
                self.tokenizer.save_pretrained(work)
                if recipe.use_peft:
                    save_adapter(state, recipe, str(self.base), work / "adapter")
                (work / "README.md").write_text(self._card(summary, provenance), encoding="utf-8")
                shutil.rmtree(target, ignore_errors=True)
                work.rename(target)
            except (OSError, SafetensorError) as reason:
                shutil.rmtree(work, ignore_errors=True)
                why = getattr(reason, "strerror", None) or reason
                error = UserError(f"{target}: the model cannot be written ({why}); free some space and run again")
            except UserError as reason:
                error = reason
            except Exception as reason:  # noqa: BLE001 - the others wait for what the first process says
                error = UserError(f"{target}: the model cannot be written ({type(reason).__name__}: {reason})")
        world.together(error)
        if recipe.use_peft:
            self.release()  # its weights have the adapter merged in
        else:
            self._holds = (str(target), recipe.master_dtype)

    def _export(self, model: Any, state: dict[str, Any], folder: Path) -> None:
        """Write model and state with the generation settings that came with the base, unless transformers refuses them.

        The model keeps its own: responses are sampled from it, and must be those of the model read back.
        """
        plain, settings = model.generation_config, generation_settings(self.base)
        try:
            settings.validate(strict=True)
            model.generation_config = settings
        except ValueError:
            pass
        try:
            tied = set(getattr(model, "_tied_weights_keys", None) or ()) if _is_tied(model) else set()
            model.save_pretrained(folder, state_dict={name: value for name, value in state.items() if name not in tied})
        finally:
            model.generation_config = plain

    def _card(self, summary: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
        from sami_train.card import licence_of, model_card, versions

        return model_card(
            recipe=self.recipe,
            base=self.base,
            licence=licence_of(self.base),
            data=provenance,
            principles=provenance,
            metrics=summary,
            versions=versions(recipe=self.recipe),
        )


def _is_tied(model: Any) -> bool:
    """Whether the head is the embeddings' own matrix, which is written once."""
    return bool(model.config.get_text_config().tie_word_embeddings)


def _empty_model(config: Any, dtype: str, trust_remote_code: bool) -> Any:
    """The model of a configuration without weights, on whatever device is set."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa", trust_remote_code=trust_remote_code
        )
    except (ValueError, ImportError) as error:
        raise UserError(
            f"a {config.model_type} model cannot be trained here ({str(error).splitlines()[0][:200]}); use a Llama, Mistral, "
            "Mixtral, Gemma or Qwen model"
        ) from None
    model.tie_weights()
    return model.eval()
