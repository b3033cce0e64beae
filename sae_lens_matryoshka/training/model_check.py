"""The configuration of a run against the language model, before the first step."""

import difflib
from collections.abc import Collection
from contextlib import suppress
from math import prod
from typing import Any

import torch
from sae_lens import LanguageModelSAERunnerConfig, logger
from sae_lens.util import extract_layer_from_tlens_hook_name
from transformer_lens.HookedTransformer import HookedRootModule

N_PROBE_TOKENS = 7  # unlike the number of heads or their size in any common model


class _ActivationSeen(Exception):
    """Ends the forward pass of a probe."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape


def check_model(model: HookedRootModule, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Check that a model has the activations that a run will train on.

    Args:
        model: The loaded model.
        cfg: The run's configuration.

    Raises:
        TypeError: The model has no hooks.
        ValueError: The hook does not exist or has no vector per token, its size is not d_in, or the
            context is longer than the model's.
    """
    if not hasattr(model, "hook_dict"):
        raise TypeError(
            f"override_model is a {type(model).__name__}, which has no hooks. Give a HookedTransformer, or "
            "wrap a transformers model: sae_lens.load_model.HookedProxyLM(model, tokenizer)."
        )
    n_ctx = _longest_context(model)
    if n_ctx is not None and cfg.context_size > n_ctx:
        raise ValueError(
            f"context_size={cfg.context_size} is longer than the context of the model, {n_ctx} tokens. "
            f"Set context_size to at most {n_ctx}."
        )
    require_hook(cfg, model.hook_dict)  # pyright: ignore[reportArgumentType]
    n_tokens = min(N_PROBE_TOKENS, n_ctx or N_PROBE_TOKENS)
    _check_width(_activation_shape(model, cfg, n_tokens), n_tokens, cfg)


def check_module_name(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """
    Check the hook of a transformers model before its weights are loaded.

    Args:
        cfg: The configuration of a run with model_class_name="AutoModelForCausalLM".

    Raises:
        ValueError: No module has that name.
    """
    names = _module_names(cfg)
    if names:
        require_hook(cfg, names)


def require_hook(cfg: LanguageModelSAERunnerConfig[Any], names: Collection[str]) -> None:
    """
    Check that a hook exists.

    Args:
        cfg: The run's configuration.
        names: The hooks of the model.

    Raises:
        ValueError: It is not among them; names the nearest.
    """
    if cfg.hook_name in names:
        return
    layer = extract_layer_from_tlens_hook_name(cfg.hook_name)
    in_layer = [name for name in names if extract_layer_from_tlens_hook_name(name) == layer]
    nearest = difflib.get_close_matches(cfg.hook_name, in_layer or names, n=3, cutoff=0.0)
    raise ValueError(
        f"hook_name={cfg.hook_name!r} does not exist in model {cfg.model_name!r}. "
        f"The nearest hooks are {', '.join(map(repr, nearest))}."
    )


def _module_names(cfg: LanguageModelSAERunnerConfig[Any]) -> list[str]:
    """The names of a transformers model's modules; empty where they show only once it is loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    options = cfg.model_from_pretrained_kwargs or {}
    remote = {"trust_remote_code": options.get("trust_remote_code")}
    with suppress(Exception):  # loading the model will say what is wrong
        config = AutoConfig.from_pretrained(
            cfg.model_name, revision=options.get("revision"), **remote
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, **remote)
        return [name for name, _ in model.named_modules() if name]
    return []


def _longest_context(model: HookedRootModule) -> int | None:
    """Tokens that a model can read at once; None where it does not say."""
    n_ctx = getattr(getattr(model, "cfg", None), "n_ctx", None)
    if n_ctx is None:  # a transformers model that SAELens has wrapped
        config: Any = getattr(getattr(model, "model", None), "config", None)
        text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
        n_ctx = getattr(text_config, "max_position_embeddings", None)
    return n_ctx if isinstance(n_ctx, int) and n_ctx > 0 else None


def _activation_shape(
    model: HookedRootModule, cfg: LanguageModelSAERunnerConfig[Any], n_tokens: int
) -> tuple[int, ...]:
    """The shape of a hook's activation for one prompt of n_tokens."""

    def stop(activation: torch.Tensor, hook: Any) -> None:  # noqa: ARG001  (TransformerLens names it)
        raise _ActivationSeen(tuple(activation.shape))

    tokens = torch.zeros(1, n_tokens, dtype=torch.long, device=next(model.parameters()).device)
    try:
        with torch.no_grad(), model.hooks(fwd_hooks=[(cfg.hook_name, stop)]):
            model(tokens)
    except _ActivationSeen as seen:
        return seen.shape
    raise ValueError(
        f"hook_name={cfg.hook_name!r} has no activation in model {cfg.model_name!r} as it is "
        "configured: TransformerLens computes some hooks, such as hook_result, only on request. "
        "Choose another hook, or configure the model so that it computes this one."
    )


def _check_width(
    shape: tuple[int, ...], n_tokens: int, cfg: LanguageModelSAERunnerConfig[Any]
) -> None:
    """Raise unless activations of that shape are vectors of d_in, one per token."""
    hook, head, d_in = cfg.hook_name, cfg.hook_head_index, cfg.sae.d_in
    is_per_token = len(shape) > 2 and shape[:2] == (1, n_tokens)
    sizes = list(shape[2:])
    if not is_per_token or sizes == [n_tokens, n_tokens]:  # attention patterns
        raise ValueError(
            f"hook_name={hook!r} does not have one vector per token: its activation for one prompt "
            f"of {n_tokens} tokens has shape {shape}. Choose a hook of shape (batch, tokens, ...)."
        )
    has_heads, n_heads, d_head = len(sizes) > 1, sizes[0], prod(sizes[1:])
    if head is not None and not has_heads:
        raise ValueError(
            f"hook_head_index={head} has no meaning for hook_name={hook!r}, which has no heads. "
            "Leave it out."
        )
    if head is not None and head >= n_heads:
        raise ValueError(
            f"hook_head_index={head} does not exist: hook_name={hook!r} has the heads 0 to "
            f"{n_heads - 1}."
        )
    width = prod(sizes) if head is None else d_head
    if d_in != width:
        heads = f" ({n_heads} heads of {d_head})" if has_heads and head is None else ""
        one_head = ", or give hook_head_index for one head" if heads and d_in == d_head else ""
        raise ValueError(
            f"d_in={d_in} does not fit hook_name={hook!r}, whose activations have {width} "
            f"dimensions{heads}. Set d_in={width}{one_head}."
        )
    if has_heads and cfg.sae.reshape_activations != "hook_z":
        logger.warning(
            f"An SAE of {'all heads together' if head is None else 'one head'} of "
            f"hook_name={hook!r} cannot be attached to the model with SAELens's add_sae or "
            "run_with_saes, which join heads at hook_z only."
        )
