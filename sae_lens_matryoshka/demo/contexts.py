"""Where in a text a latent fires most: what a person reads to see what it stands for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens import HookedTransformer

CHARS_BEFORE, CHARS_AFTER = 48, 32  # of context around the token that fires
SNIPPETS_PER_LATENT = 4


@dataclass
class Snippet:
    """One place where a latent fires.

    Args:
        before: Text before the token.
        token: The token on which it fires.
        after: Text after it.
        activation: How strongly it fires there.
    """

    before: str
    token: str
    after: str
    activation: float


@dataclass
class LatentActivity:
    """Activations of some texts' tokens, kept sparse.

    Args:
        tokens: Token ids, (sequences, context).
        counted: Tokens that count: all but the separators, (sequences, context).
        row: Text of each activation, (n_active,).
        position: Position in its text, (n_active,).
        latent: Latent that fires, (n_active,).
        activation: How strongly, (n_active,).
        d_sae: Number of latents.
    """

    tokens: torch.Tensor
    counted: torch.Tensor
    row: torch.Tensor
    position: torch.Tensor
    latent: torch.Tensor
    activation: torch.Tensor
    d_sae: int

    @property
    def frequency(self) -> torch.Tensor:
        """Share of the tokens on which each latent fires, (d_sae,)."""
        counts = torch.bincount(self.latent, minlength=self.d_sae)
        return counts / self.counted.sum()


@torch.no_grad()
def latent_activity(
    model: "HookedTransformer", sae: "SAE[Any]", tokens: torch.Tensor, batch_size: int = 32
) -> LatentActivity:
    """Run texts through the model and the SAE.

    Args:
        model: The language model.
        sae: An SAE of one of its hooks.
        tokens: Token ids, (sequences, context). The tokenizer's beginning-of-sequence token, which
            stands before each text, is left out as in training.
        batch_size: Sequences at once.

    Returns:
        Every activation that is not zero.
    """
    hook_name = sae.cfg.metadata.hook_name
    assert hook_name is not None
    assert model.tokenizer is not None
    separator: Any = model.tokenizer.bos_token_id
    counted = tokens.ne(separator)  # (sequences, context)
    rows: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for start in range(0, len(tokens), batch_size):
        batch = tokens[start : start + batch_size]
        _, cache = model.run_with_cache(
            batch, names_filter=[hook_name], stop_at_layer=int(hook_name.split(".")[1]) + 1
        )
        acts = sae.encode(cache[hook_name])  # (batch, context, d_sae)
        acts *= counted[start : start + batch_size, :, None]
        where = acts.nonzero()  # (n_active, 3)
        values.append(acts[tuple(where.T)])
        where[:, 0] += start
        rows.append(where)
    row, position, latent = torch.cat(rows).T
    activation = torch.cat(values)
    return LatentActivity(tokens, counted, row, position, latent, activation, sae.cfg.d_sae)


def top_snippets(
    activity: LatentActivity, latent: int, tokenizer: Any, n: int = SNIPPETS_PER_LATENT
) -> list[Snippet]:
    """The strongest activations of a latent, one per text.

    Args:
        activity: What fires where.
        latent: Which latent.
        tokenizer: Decodes the tokens.
        n: How many, at most.
    """
    mine = (activity.latent == latent).nonzero().flatten()
    strongest = mine[activity.activation[mine].argsort(descending=True)]
    snippets: list[Snippet] = []
    seen: set[int] = set()
    for index in strongest.tolist():
        row, position = int(activity.row[index]), int(activity.position[index])
        if row in seen:
            continue
        seen.add(row)
        activation = activity.activation[index].item()
        before, token, after = _around(activity, row, position)
        snippets.append(_snippet(before, token, after, activation, tokenizer))
        if len(snippets) == n:
            break
    return snippets


def _around(
    activity: LatentActivity, row: int, position: int
) -> tuple[list[int], list[int], list[int]]:
    """The token ids of the same text before, at and after a position."""
    ids, counted = activity.tokens[row].tolist(), activity.counted[row].tolist()
    start = next((i + 1 for i in range(position, -1, -1) if not counted[i]), 0)
    end = next((i for i in range(position, len(ids)) if not counted[i]), len(ids))
    return ids[start:position], [ids[position]], ids[position + 1 : end]


def _snippet(
    before: list[int], token: list[int], after: list[int], activation: float, tokenizer: Any
) -> Snippet:
    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids).replace("\n", " ")

    return Snippet(
        _last_words(text(before), CHARS_BEFORE),
        text(token),
        _first_words(text(after), CHARS_AFTER),
        activation,
    )


def _last_words(text: str, n_chars: int) -> str:
    if len(text) <= n_chars:
        return text
    _, space, words = text[-n_chars:].partition(" ")
    return f"...{space}{words}"


def _first_words(text: str, n_chars: int) -> str:
    if len(text) <= n_chars:
        return text
    return f"{text[:n_chars].rpartition(' ')[0]} ..."
