"""L0 and FVU of an SAE on text: what no comparison goes without."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sae_lens import SAE, ActivationsStore

from sae_lens_matryoshka.bench.config import TextSource

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

TOKENS_AT_A_TIME = 1024


@dataclass(frozen=True)
class Fidelity:
    """
    How an SAE does on text.

    Args:
        l0: Active latents per token.
        fvu: Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2.
        silent: Share of latents that never fired.
        tokens: Tokens that this was measured on.
    """

    l0: float
    fvu: float
    silent: float
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
        (tokens, d_in), or (tokens, heads, d_head) for hook_z; on the CPU.
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
        kept.append(cache[hook].cpu()[~torch.isin(tokens.cpu(), ignored)])
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
        tokens=len(x),
    )
