"""Train an SAE on the toy tree as the paper's toy code does (appendix C.1)."""

from pathlib import Path
from typing import Any, Literal

import torch
from sae_lens import SAE
from sae_lens.saes.sae import TrainStepInput

from research.ground_truth.parallel_tasks import Tell
from research.ground_truth.toy_tree import D_IN, N_FEATURES, ToyTree
from sae_lens_matryoshka.ownership import replaced_folder
from sae_lens_matryoshka.saes.config import MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.saes.latent_order import DECAY, order_of
from sae_lens_matryoshka.saes.latent_parameters import LATENT_DIM
from sae_lens_matryoshka.saes.training_sae import MatryoshkaTrainingSAE

Arm = Literal["vanilla", "matryoshka"]

BATCH = 200
TARGET_L0 = 1.2338
L1_START, L1_WARM_UP_SHARE = 0.2, 0.2
LR, LR_WARM_UP_STEPS, LR_DECAY_FROM, LR_END = 3e-2, 100, 0.8, 0.1
BETAS = (0.5, 0.9375)
N_PREFIXES = 10


def train(arm: Arm, tree: ToyTree, steps: int, seed: int, folder: Path, tell: Tell) -> SAE[Any]:
    """
    Train, save, and load again with stock SAELens.

    Args:
        arm: "matryoshka": ten random prefixes a step, latents sorted by energy after each; "vanilla": neither.
        tree: What to train on.
        steps: Of 200 tokens each; the paper has 40,000.
        seed: Of the SAE's start and its prefixes.
        folder: Where to save it.
        tell: Called after each step.
    """
    torch.manual_seed(seed)
    sae = MatryoshkaTrainingSAE(_config(arm))
    # of the authors' scale; apart from the decoder's directions fewer latents die
    with torch.no_grad():
        sae.W_enc.normal_(std=D_IN**-0.5)
    optimizer = torch.optim.Adam(sae.parameters(), lr=LR, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, steps))
    energy = torch.zeros(N_FEATURES)  # running mean at each place
    for step in range(steps):
        warm = min(1.0, step / (L1_WARM_UP_SHARE * steps))
        batch = TrainStepInput(tree.activations(BATCH), {"l1": L1_START * warm}, None, step, False)
        out = sae.training_forward_pass(batch)
        optimizer.zero_grad(set_to_none=True)
        loss = out.loss / (N_PREFIXES if arm == "matryoshka" else 1)  # theirs is the prefixes' mean
        loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        if arm == "matryoshka":  # by the norms that the batch met
            norms = sae.W_dec.data.norm(dim=1)
            contributions = out.feature_acts.to_dense() * norms  # (batch, d_sae)
            energy.lerp_(contributions.square().mean(dim=0), 1 - DECAY["energy"])
        optimizer.step()
        schedule.step()
        if arm == "matryoshka":
            _sort(sae, order_of(energy))
        tell()
    sae.fold_W_dec_norm()
    with replaced_folder(folder) as staging:
        sae.save_inference_model(str(staging))
    return SAE.load_from_disk(folder)


@torch.no_grad()
def _sort(sae: MatryoshkaTrainingSAE, order: torch.Tensor) -> None:
    """
    Put latents into an order as the authors' code does: the weights alone.

    Adam's moments and the running means stay where they are, so that latents change places to and fro until
    the means have caught up. latent_order="energy" moves all of it together, which did worse
    (docs/results/toy_tree.md).
    """
    for name, parameter in sae.named_parameters():
        if name in LATENT_DIM:
            parameter.copy_(parameter.index_select(LATENT_DIM[name], order))


def _config(arm: Arm) -> MatryoshkaTrainingSAEConfig:
    prefixes: dict[str, Any] = {"matryoshka_widths": [N_FEATURES]}
    if arm == "matryoshka":
        prefixes = {"prefix_sampling": "random", "n_prefixes": N_PREFIXES}
    return MatryoshkaTrainingSAEConfig(
        d_in=D_IN,
        d_sae=N_FEATURES,
        activation="relu",
        l1_coefficient=L1_START,
        target_l0=TARGET_L0,
        rescale_acts_by_decoder_norm=False,
        **prefixes,
    )


def _lr_factor(step: int, steps: int) -> float:
    """Up over the first steps, down to a tenth over the last fifth."""
    decaying = max(0.0, (step - LR_DECAY_FROM * steps) / ((1 - LR_DECAY_FROM) * steps))
    return min(1.0, (step + 1) / LR_WARM_UP_STEPS) * (1 - (1 - LR_END) * decaying)
