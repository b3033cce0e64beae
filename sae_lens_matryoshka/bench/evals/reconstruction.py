"""L0 and FVU of an SAE on text, how alike its latents are: what no comparison goes without."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE, ActivationsStore

from sae_lens_matryoshka.bench.config import TextSource

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOKENS_AT_A_TIME = 1024
LATENTS_AT_A_TIME = 512  # against 65,536: 134 MB of cosines


@dataclass(frozen=True)
class Fidelity:
    """
    How an SAE does on text, and its decoder.

    Args:
        l0: Active latents per token.
        fvu: Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2. BOS, whose norm is an
            outlier in many models, is not among the tokens; with it FVU can be higher or lower.
        silent: Share of latents that never fired.
        decoder_max_cosine: As the function of that name gives it; no text decides it.
        tokens: Tokens that this was measured on.
    """

    l0: float
    fvu: float
    silent: float
    decoder_max_cosine: float
    tokens: int


@torch.no_grad()
def activations(
    model: "HookedTransformer", sae: SAE[Any], text: TextSource, batch_size: int
) -> torch.Tensor:
    """
    The model's activations at the SAE's hook, without those of BOS, EOS and PAD, as SAEBench has it.

    Args:
        model: The model.
        sae: Any SAE of the hook; says whether prompts begin with BOS.
        text: Where the text comes from.
        batch_size: Sequences per forward pass.

    Returns:
        (tokens, d_in) on the CPU, heads flattened.
    """
    store = ActivationsStore.from_sae(
        model, sae, context_size=text.context_size, dataset=text.dataset
    )
    hook = str(sae.cfg.metadata.hook_name)
    tokenizer: Any = model.tokenizer
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    ignored = torch.tensor([token for token in special if token is not None])
    kept: list[torch.Tensor] = []
    for start in range(0, text.sequences, batch_size):
        tokens = store.get_batch_tokens(min(batch_size, text.sequences - start))
        _, cache = model.run_with_cache(tokens, names_filter=hook, prepend_bos=False)
        x = cache[hook].flatten(2).cpu()  # (batch, context, d_in)
        kept.append(x[~torch.isin(tokens.cpu(), ignored)])
    return torch.cat(kept)


@torch.no_grad()
def measure(sae: SAE[Any], x: torch.Tensor) -> Fidelity:
    """
    Measure an SAE on activations.

    Args:
        sae: The SAE.
        x: As `activations` gives them.
    """
    mean = x.double().mean(0)
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.long)
    error = variance = 0.0
    for rows in x.split(TOKENS_AT_A_TIME):
        acts = sae.encode(rows.to(sae.device, sae.dtype))  # (tokens, d_sae)
        x_hat = sae.decode(acts).double().cpu()
        fired += (acts != 0).sum(0).cpu()
        error += float((rows.double() - x_hat).square().sum())
        variance += float((rows.double() - mean).square().sum())
    return Fidelity(
        l0=float(fired.sum()) / len(x),
        fvu=error / variance,
        silent=float((fired == 0).double().mean()),
        decoder_max_cosine=decoder_max_cosine(sae.W_dec),
        tokens=len(x),
    )


@torch.no_grad()
def decoder_max_cosine(W_dec: torch.Tensor) -> float:
    """
    Mean over latents of the largest cosine of a latent's decoder row with another latent's.

    OrtSAE's mean max cos (arXiv 2509.22033). A row of zeros has no direction: it is left out, as a latent
    and as another's neighbour.

    Args:
        W_dec: (d_sae, d_in), or (d_sae, heads, d_head).

    Returns:
        The mean; NaN with fewer than two rows, where no latent has another.
    """
    rows = W_dec.flatten(1).float()
    norms = rows.norm(dim=-1, keepdim=True)  # (d_sae, 1)
    has_direction = norms[:, 0] != 0
    directions = rows[has_direction] / norms[has_direction]  # (latents, d_in)
    if len(directions) < 2:
        return math.nan
    largest: list[torch.Tensor] = []
    for start in range(0, len(directions), LATENTS_AT_A_TIME):
        cosines = directions[start : start + LATENTS_AT_A_TIME] @ directions.T  # (block, latents)
        cosines.diagonal(start).fill_(-math.inf)  # a latent's with itself
        largest.append(cosines.amax(dim=-1))
    return float(torch.cat(largest).double().mean())
