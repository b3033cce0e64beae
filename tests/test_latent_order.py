"""Sorting latents while they train: nothing but the order changes."""

import torch
from sae_lens.saes.sae import TrainStepInput

from sae_lens_matryoshka import MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.latent_order import EnergyOrder, permute_latents


def trained(steps: int = 3) -> tuple[MatryoshkaTrainingSAE, torch.optim.Optimizer]:
    torch.manual_seed(0)
    sae = MatryoshkaTrainingSAE(
        MatryoshkaTrainingSAEConfig(
            d_in=6,
            d_sae=10,
            activation="relu",
            l1_coefficient=0.1,
            l1_warm_up_steps=0,
            matryoshka_widths=[10],
            rescale_acts_by_decoder_norm=False,
        )
    )
    optimizer = torch.optim.Adam(sae.parameters(), lr=1e-2)
    for step in range(steps):
        train_step(sae, optimizer, step)
    return sae, optimizer


def train_step(
    sae: MatryoshkaTrainingSAE, optimizer: torch.optim.Optimizer, step: int
) -> torch.Tensor:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(step))
    out = sae.training_forward_pass(TrainStepInput(x, {"l1": 0.1}, None, step, False))
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    return out.feature_acts.to_dense()


def test_a_permuted_run_is_the_run_permuted():
    """With one level the order means nothing: moments that stayed behind would show."""
    (plain, plain_adam), (moved, moved_adam) = trained(), trained()
    order = torch.tensor([7, 2, 9, 0, 4, 1, 8, 3, 6, 5])
    permute_latents(moved, moved_adam, order)
    for step in range(3, 8):
        train_step(plain, plain_adam, step)
        train_step(moved, moved_adam, step)
    torch.testing.assert_close(moved.W_dec, plain.W_dec[order])
    torch.testing.assert_close(moved.W_enc, plain.W_enc[:, order])
    torch.testing.assert_close(moved.b_enc, plain.b_enc[order])
    torch.testing.assert_close(moved.b_dec, plain.b_dec)


def test_the_order_is_that_of_the_running_energy():
    sae, adam = trained()
    order = EnergyOrder(10, decay=0.5)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(9))
    expected = torch.zeros(10)
    for _ in range(3):
        norms = sae.W_dec.norm(dim=-1).detach()
        acts = sae.encode(x).detach()
        energy = (acts * norms).pow(2).mean(dim=0)
        expected = 0.5 * expected + 0.5 * energy
        order.step(sae, adam, acts)
        expected = expected.sort(descending=True).values
        torch.testing.assert_close(order.energy, expected)
    now = (sae.encode(x) * sae.W_dec.norm(dim=-1)).pow(2).mean(dim=0)
    assert (now.diff() <= 1e-6).all()
