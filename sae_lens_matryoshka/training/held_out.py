"""L0 and FVU of every level of a saved SAE, measured once at the end of training on held-out tokens."""

import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE, logger
from sae_lens.constants import SAE_CFG_FILENAME
from sae_lens.saes.jumprelu_sae import JumpReLUSAE
from sae_lens.saes.standard_sae import StandardSAE
from sae_lens.util import get_special_token_ids
from tqdm.auto import tqdm

from sae_lens_matryoshka.atomic_files import whole_files
from sae_lens_matryoshka.levels import measurements as level_results
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.levels.measurements import FVU, L0, measurement
from sae_lens_matryoshka.saes.inference_sae import named_widths
from sae_lens_matryoshka.training.activations.store import ResumableStore

FRACTION_OF_TRAINING = 50  # one held-out token for this many training tokens
FEWEST, MOST = 1_024, 32_768  # tokens
TOKENS_AT_A_TIME = 1_024


@dataclass
class LevelQuality:
    """
    How well one level reconstructs.

    Args:
        width: Its latents.
        l0: Active latents per token.
        fvu: Fraction of variance unexplained: sum |x - x_hat|^2 / sum |x - mean(x)|^2.
    """

    width: int
    l0: float
    fvu: float


def record_held_out(
    folder: Path, store: ResumableStore, training_tokens: int, device: str = "cpu"
) -> None:
    """
    Measure the SAE saved in a folder on activations drawn after the last training step.

    The results go into the metadata in its cfg.json. Weights are only read, and a failure is
    reported and leaves the folder as it was.

    Args:
        folder: Folder of the saved inference SAE.
        store: The store that training drew from; no other thread may draw from it now.
        training_tokens: Length of the training. A fiftieth of it is measured, within 1,024 to
            32,768 tokens.
        device: Where to put the SAE.
    """
    try:
        _record(folder, store, _length(training_tokens), device)
    except Exception as error:  # whatever it is: the SAE is trained and saved
        logger.warning(f"The SAE in {folder} is saved, but L0 and FVU were not measured: {error!r}")


def _length(training_tokens: int) -> int:
    return min(max(training_tokens // FRACTION_OF_TRAINING, FEWEST), MOST)


def _record(folder: Path, store: ResumableStore, n_tokens: int, device: str) -> None:
    with warnings.catch_warnings():  # SAELens explains how to load the model, which is loaded
        warnings.simplefilter("ignore")
        sae = SAE.load_from_disk(folder, device=device)
    held_out = _HeldOut(store, n_tokens)
    levels = measure(sae, held_out)
    level_results.record(
        sae,
        {q.width: {L0: measurement([q.l0]), FVU: measurement([q.fvu])} for q in levels},
    )
    sae.cfg.metadata[level_results.NOTES] = [held_out.describe()]
    _write_metadata(folder, sae)
    tqdm.write(f"{held_out.describe()}:")
    for level in levels:
        tqdm.write(f"  {level.width:,} latents: L0 {level.l0:.1f}, FVU {level.fvu:.3f}")


@torch.no_grad()
def measure(sae: SAE[Any], batches: Iterable[torch.Tensor]) -> list[LevelQuality]:
    """
    Measure an SAE and those of its levels that stand alone.

    Args:
        sae: An inference SAE.
        batches: Activations of the model, each (tokens, d_in).

    Returns:
        The levels, innermost first; of an SAE without levels, and of a topk SAE, the SAE itself.

    Raises:
        ValueError: There are no tokens, or all are alike.
    """
    widths = _measurable_widths(sae)
    nested = MatryoshkaSAE(sae, widths)
    fired = torch.zeros(sae.cfg.d_sae, dtype=torch.long, device=sae.device)
    errors = torch.zeros(len(widths), dtype=torch.double)
    total = torch.zeros(sae.cfg.d_in, dtype=torch.double)
    squares, n = 0.0, 0
    for batch in batches:
        x = batch.to(sae.device, sae.dtype)
        x = x[:, None] if sae.cfg.reshape_activations == "hook_z" else x  # one head of d_in
        acts = sae.encode(x)  # (tokens, d_sae)
        x_hat = nested.reconstructions(x) if len(widths) > 1 else sae.decode(acts)[None]
        exact = batch.to(sae.device, torch.double)
        fired += (acts != 0).sum(dim=0)
        errors += x_hat.flatten(2).double().sub(exact).square().sum((1, 2)).cpu()
        total += exact.sum(dim=0).cpu()
        squares += float(exact.square().sum())
        n += len(batch)
    variance = squares - float(total.square().sum()) / max(n, 1)
    if variance <= 0:
        raise ValueError(f"the {n} held-out tokens have no variance")
    return [
        LevelQuality(width, float(fired[:width].sum()) / n, error / variance)
        for width, error in zip(widths, errors.tolist(), strict=True)
    ]


def _measurable_widths(sae: SAE[Any]) -> Sequence[int]:
    """The levels that are SAEs of their own; else the SAE's width."""
    stands_alone = type(sae) in (JumpReLUSAE, StandardSAE)
    return (named_widths(sae.cfg.metadata) if stands_alone else None) or [sae.cfg.d_sae]


class _HeldOut:
    """
    Activations that the store gives next, without special tokens; iterated once.

    Args:
        store: The store.
        n_tokens: How many, special ones included; of those the store gives at once, all.
    """

    def __init__(self, store: ResumableStore, n_tokens: int):
        self.store, self.n_tokens = store, n_tokens
        self.n_measured = 0
        self.is_new = store.n_finished_passes == 0
        self.knows_tokens = True
        tokenizer: Any = getattr(store.model, "tokenizer", None)
        special = [] if tokenizer is None else get_special_token_ids(tokenizer)
        self.special = torch.tensor(special, dtype=torch.long, device=store.device)
        if store.exclude_special_tokens is not None:
            self.special = torch.cat([self.special, store.exclude_special_tokens])

    def __iter__(self) -> Iterator[torch.Tensor]:
        drawn = 0
        while drawn < self.n_tokens:
            try:
                acts, tokens = self.store.get_raw_llm_batch(raise_on_epoch_end=True)
            except StopIteration:
                if drawn:
                    return
                self.is_new = False
                acts, tokens = self.store.get_raw_llm_batch()
            acts = acts[: self.n_tokens - drawn]
            drawn += len(acts)
            is_kept = acts.isfinite().all(dim=-1)
            self.knows_tokens = tokens is not None
            if tokens is not None:
                is_kept &= ~torch.isin(tokens[: len(acts)], self.special)
            self.n_measured += int(is_kept.sum())
            yield from acts[is_kept].split(TOKENS_AT_A_TIME)

    def describe(self) -> str:
        """What was measured on, in a sentence without a full stop."""
        if self.is_new:
            tokens = f"{self.n_measured:,} held-out tokens of the training data"
        else:
            tokens = (
                f"{self.n_measured:,} tokens of the training data, which are not held out: training "
                "had read the data set to its end before"
            )
        if not self.knows_tokens:
            special = (
                "BOS is included, since the cached activations do not tell special tokens apart"
            )
        elif len(self.special):
            special = "special tokens (BOS, EOS, padding) are left out"
        else:
            special = "the model has no special tokens to leave out"
        return f"L0 and FVU: measured at the end of training on {tokens}; {special}"


def _write_metadata(folder: Path, sae: SAE[Any]) -> None:
    """Put the results into cfg.json and leave everything else in it as it is."""
    cfg = json.loads((folder / SAE_CFG_FILENAME).read_text(encoding="utf-8"))
    for key in (level_results.KEY, level_results.MEASURED_ON, level_results.NOTES):
        cfg["metadata"][key] = sae.cfg.metadata[key]
    with whole_files(folder) as staging:
        (staging / SAE_CFG_FILENAME).write_text(json.dumps(cfg), encoding="utf-8")
