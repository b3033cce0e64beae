"""What TransformerLens's names of language models are called on the Hub."""


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
