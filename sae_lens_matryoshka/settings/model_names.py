"""Names of language models and of places in them, between TransformerLens and Hugging Face."""

import re
from difflib import get_close_matches

# what Hugging Face's models call their lists of blocks
_BLOCK = re.compile(
    r"(?:gpt_neox\.layers|transformer\.h|model\.layers|model\.decoder\.layers)\.(\d+)"
)


def official_name(name: str | None) -> str | None:
    """
    The Hub repo of a model, None if TransformerLens knows no such model.

    Args:
        name: TransformerLens's name, such as "gemma-2-2b", or the repo itself.
    """
    from transformer_lens.loading_from_pretrained import get_official_model_name

    try:
        return get_official_model_name(name) if name else None
    except ValueError:
        return None


def hook_of(place: str) -> str:
    """
    The TransformerLens hook at a place that SAELens can train on.

    Args:
        place: A hook, which is returned, or a module of a Hugging Face model. SAELens names modules where it
            was trained with model_class_name="AutoModelForCausalLM".

    Raises:
        ValueError: It is a module, and not a whole block.
    """
    if block := _BLOCK.fullmatch(place):
        return f"blocks.{block[1]}.hook_resid_post"
    if "hook_" not in place:
        raise ValueError(
            f"{place!r} is no hook of TransformerLens, which SAEBench reads. Of a Hugging Face model's modules only "
            "whole blocks, such as 'gpt_neox.layers.1', can be measured: they are blocks.1.hook_resid_post"
        )
    return place


def similar_names(name: str | None) -> str:
    """TransformerLens's names that are similar to an unknown one, as a question; "" if none is."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    similar = get_close_matches((name or "").lower(), make_model_alias_map(), n=3)
    return f" Did you mean {' or '.join(similar)}?" if similar else ""


def check_model_name(model_class_name: str, name: str) -> None:
    """
    Check that SAELens can open a model by this name, as far as this machine knows.

    Args:
        model_class_name: SAELens's: what opens it.
        name: The model's name.

    Raises:
        ValueError: TransformerLens, which is to open it, does not know it.
    """
    if model_class_name == "HookedTransformer" and official_name(name) is None:
        raise ValueError(
            f"model_name={name!r} is no model that TransformerLens knows.{similar_names(name)} For another model, "
            "or a local folder, set model_class_name to AutoModelForCausalLM and hook_name to one of its modules."
        )
