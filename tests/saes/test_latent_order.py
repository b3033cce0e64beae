"""Prefixes in another order than the weights': the same as moving the weights, and saved as plain ones."""

import pytest
import torch
from driver_helpers import D_IN, D_SAE, DRIVERS, activations
from sae_lens import SAE, SAETrainer
from sae_lens.constants import SPARSITY_FILENAME
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file
from test_drivers import trainer_config

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
)
from sae_lens_matryoshka.engine import using
from sae_lens_matryoshka.saes.latent_order import DECAY

WIDTHS = [6, 18, D_SAE]


def new_sae(**options) -> MatryoshkaTrainingSAE:
    torch.manual_seed(0)
    options = {"d_in": D_IN, "d_sae": D_SAE, "k": 4, "matryoshka_widths": WIDTHS, **options}
    return MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(**options))


def train(sae, optimizer, steps: int, after_step=None) -> None:
    stream = activations()
    for step in range(steps):
        coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
        dead = torch.zeros(D_SAE, dtype=torch.bool)
        out = sae.training_forward_pass(
            TrainStepInput(next(stream), coefficients, dead, step, False)
        )
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        if after_step is not None:
            after_step(out.feature_acts.to_dense())


def move(sae, optimizer, order: torch.Tensor) -> None:
    """By hand: weights and both of Adam's moments."""
    for parameter, dim in ((sae.W_enc, 1), (sae.b_enc, 0), (sae.W_dec, 0)):
        state = optimizer.state[parameter]
        for tensor in (parameter.data, state["exp_avg"], state["exp_avg_sq"]):
            tensor.copy_(tensor.index_select(dim, order))


@pytest.mark.parametrize("path", ["dense", "sparse"])
@pytest.mark.parametrize("order", ["frequency", "energy"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"detach_inner_levels": True},
        {"prefix_sampling": "random", "n_prefixes": 5},
        {
            "activation": "relu",
            "k": None,
            "l1_coefficient": 0.05,
            "rescale_acts_by_decoder_norm": False,
        },
    ],
    ids=["fixed", "detached", "random", "relu"],
)
def test_is_the_run_whose_weights_are_sorted_after_every_step(tmp_path, path, order, options):
    with using(path):
        ours, reference = new_sae(latent_order=order, **options), new_sae(**options)
        assert torch.equal(ours.W_dec, reference.W_dec)
        train(ours, torch.optim.Adam(ours.parameters(), lr=3e-3), 12)

        optimizer, scores = torch.optim.Adam(reference.parameters(), lr=3e-3), torch.zeros(D_SAE)
        norms = [reference.W_dec.detach().norm(dim=-1)]

        def sort(acts: torch.Tensor) -> None:
            nonlocal scores
            new = (acts > 0).float().mean(dim=0)
            if order == "energy":
                scale = 1.0 if reference.cfg.rescale_acts_by_decoder_norm else norms[0]
                new = (acts * scale).square().mean(dim=0)
            scores = DECAY[order] * scores + (1 - DECAY[order]) * new
            places = scores.argsort(descending=True, stable=True)
            scores = scores[places]
            move(reference, optimizer, places)
            norms[0] = reference.W_dec.detach().norm(dim=-1)

        train(reference, optimizer, 12, sort)
        for sae, folder in ((ours, "ours"), (reference, "reference")):
            sae.save_inference_model(tmp_path / folder)
        saved = [SAE.load_from_disk(tmp_path / name) for name in ("ours", "reference")]
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(
            getattr(saved[0], name), getattr(saved[1], name), rtol=1e-4, atol=1e-5
        )
    assert not torch.equal(ours.latent_order(), torch.arange(D_SAE))  # there was something to sort


def test_saved_levels_are_plain_prefixes():
    sae = new_sae(latent_order="frequency")
    train(sae, torch.optim.Adam(sae.parameters(), lr=3e-3), 20)
    with torch.no_grad():
        x = next(activations(seed=5))
        acts, order = sae.encode(x), sae.latent_order()
        expected = [acts[:, order[:m]] @ sae.decoder()[order[:m]] + sae.b_dec for m in WIDTHS]
        opened = MatryoshkaSAE.from_sae(sae)
        # the stock SAE has a threshold instead of a top-k
        same = ((opened.sae.encode(x) > 0) == (acts[:, order] > 0)).all(dim=-1)
        assert same.float().mean() > 0.5
        recons = opened.reconstructions(x)
    for level, reconstruction in zip(recons, expected):
        torch.testing.assert_close(level[same], reconstruction[same], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver_leaves_all_in_one_order(tmp_path, driver):
    """The saved SAE, sparsity.safetensors, the trainer's counters and the moments of Adam."""
    cfg = new_sae(latent_order="frequency", aux_loss="none", d_sae=200).cfg
    run = DRIVERS[driver](cfg, tmp_path, steps=150, lr=1e-3, feature_sampling_window=50)
    sae, trainer = run.sae, run.trainer
    assert torch.equal(sae.latent_order(), torch.arange(200))
    fires = (SAE.load_from_disk(run.output).encode(run.activations) > 0).float().mean(dim=0)
    counted = trainer.act_freq_scores / trainer.n_frac_active_samples
    assert correlation(fires, counted) > 0.9
    if run.writes_sparsity:
        assert correlation(fires, 10 ** load_file(run.output / SPARSITY_FILENAME)["sparsity"]) > 0.9
    # a latent that never fired has never had a gradient
    never = trainer.n_forward_passes_since_fired == 150
    had_gradient = trainer.optimizer.state[sae.W_enc]["exp_avg_sq"].any(dim=0)
    assert 0 < never.sum() < 200
    assert torch.equal(had_gradient, ~never)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([a, b]))[0, 1].item()


def test_a_resumed_run_is_the_whole_run(tmp_path):
    whole = new_sae(latent_order="frequency")
    SAETrainer(trainer_config(40), whole, activations()).fit()

    stream, first = activations(), new_sae(latent_order="frequency")
    trainer = SAETrainer(trainer_config(40), first, stream)
    for _ in range(20):
        trainer.step(next(stream))
        trainer.n_training_steps += 1
    trainer.save_checkpoint("middle", base_path=tmp_path)

    second = new_sae(latent_order="frequency")
    second.load_weights_from_checkpoint(tmp_path / "middle")
    resumed = SAETrainer(trainer_config(40), second, stream)
    resumed.load_trainer_state(tmp_path / "middle")
    resumed.fit()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
