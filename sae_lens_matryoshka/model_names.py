"""Names of language models and of places in them, between TransformerLens and Hugging Face."""

import re

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
