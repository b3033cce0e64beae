"""Dead latents start anew where the SAE is bad, whoever drives it."""

import pytest
import torch
from driver_helpers import D_IN, D_SAE, DRIVERS, activations
from sae_lens.saes.sae import TrainStepInput

from sae_lens_matryoshka import MatryoshkaTrainingSAE, MatryoshkaTrainingSAEConfig
from sae_lens_matryoshka.saes import resampling


def new_sae(**options) -> MatryoshkaTrainingSAE:
    torch.manual_seed(0)
    options = {
        "d_in": D_IN,
        "d_sae": D_SAE,
        "k": 2,
        "matryoshka_widths": [6, 18],
        "aux_loss": "none",
        **options,
    }
    return MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(**options))


class TestChoose:
    residual = torch.randn(50, D_IN, generator=torch.Generator().manual_seed(0))

    def test_directions_are_residuals_of_different_tokens(self):
        chosen = resampling.choose(torch.arange(100) < 20, self.residual, step=1)
        cosines = chosen.directions @ torch.nn.functional.normalize(self.residual, dim=-1).T
        assert (cosines.max(dim=1).values > 1 - 1e-5).all()
        assert len(cosines.argmax(dim=1).unique()) == 20

    def test_badly_reconstructed_tokens_are_likelier(self):
        residual = torch.eye(4, D_IN) * torch.tensor([1.0, 0.0, 3.0, 0.0])[:, None]
        drawn = torch.stack(
            [
                resampling.choose(torch.arange(6) == 5, residual, step=s).directions[0]
                for s in range(400)
            ]
        )
        shares = drawn.mean(dim=0)[:4]
        torch.testing.assert_close(
            shares, torch.tensor([0.1, 0.0, 0.9, 0.0]), atol=0.05, rtol=0
        )  # squares: 1 to 9

    def test_more_dead_latents_than_tokens(self):
        chosen = resampling.choose(torch.arange(100) < 80, self.residual, step=1)
        assert len(chosen.latents) == len(chosen.directions) == len(chosen.latents.unique()) == 50
        assert chosen.latents.max() > 60  # not the first ones, which may have been resampled before

    def test_a_perfect_batch(self):
        chosen = resampling.choose(torch.arange(6) < 3, torch.zeros(5, D_IN), step=1)
        assert len(chosen.latents) == 0


def one_step(sae, optimizer, dead, step: int):
    out = sae.training_forward_pass(
        TrainStepInput(next(activations(seed=step)), {}, dead, step, False)
    )
    optimizer.zero_grad()
    out.loss.backward()
    return out


def test_weights_and_moments_after_the_step():
    sae, plain = new_sae(resample_every=5), new_sae()
    adam, plain_adam = (torch.optim.Adam(s.parameters(), lr=3e-3) for s in (sae, plain))
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[[3, 20, 41]] = True
    for step in range(6):
        for s, optimizer in ((sae, adam), (plain, plain_adam)):
            out = one_step(s, optimizer, dead, step)
            optimizer.step()
    residual = torch.nn.functional.normalize(next(activations(seed=5)) - out.sae_out, dim=-1)
    # the others are what they would have been
    for s, name, dim in ((sae, "W_enc", 1), (sae, "b_enc", 0), (sae, "W_dec", 0)):
        ours, theirs = getattr(s, name).data, getattr(plain, name).data
        kept = (~dead).nonzero().squeeze(1)
        assert torch.equal(ours.index_select(dim, kept), theirs.index_select(dim, kept))
        state = adam.state[getattr(s, name)]
        for moment in (state["exp_avg"], state["exp_avg_sq"]):
            assert (moment.index_select(dim, dead.nonzero().squeeze(1)) == 0).all()
            assert moment.index_select(dim, kept).any()
    rows, columns = sae.W_dec[dead], sae.W_enc[:, dead].T
    assert (torch.nn.functional.normalize(rows, dim=-1) @ residual.T).max(
        dim=1
    ).values.min() > 0.999
    torch.testing.assert_close(
        torch.nn.functional.normalize(rows, dim=-1), torch.nn.functional.normalize(columns, dim=-1)
    )
    torch.testing.assert_close(rows.norm(dim=-1), plain.W_dec[~dead].norm(dim=-1).mean().expand(3))
    assert (sae.b_enc[dead] == 0).all()


@pytest.mark.parametrize(
    ("step", "options"),
    [(0, {}), (7, {}), (15, {"resample_until": 10})],
    ids=["the first step", "between", "after resample_until"],
)
def test_not_at_other_steps(step, options):
    sae = new_sae(resample_every=5, **options)
    adam = torch.optim.Adam(sae.parameters(), lr=0.0)
    before = sae.W_dec.detach().clone()
    one_step(sae, adam, torch.ones(D_SAE, dtype=torch.bool), step)
    adam.step()
    assert torch.equal(sae.W_dec, before)


def test_weights_that_nothing_steps_are_noticed():
    sae = new_sae(resample_every=5)
    adam, dead = torch.optim.Adam(sae.parameters()), torch.ones(D_SAE, dtype=torch.bool)
    one_step(sae, adam, dead, 5)
    with pytest.raises(RuntimeError, match="step 10.*still wait for a step of the optimizer"):
        one_step(sae, adam, dead, 10)


def test_two_batches_before_one_step():
    sae = new_sae(resample_every=5)
    adam, dead = torch.optim.Adam(sae.parameters()), torch.zeros(D_SAE, dtype=torch.bool)
    dead[7] = True
    for _ in range(2):
        one_step(sae, adam, dead, 5)
    before = sae.W_dec[7].detach().clone()
    adam.step()
    assert not torch.allclose(sae.W_dec[7], before, atol=1e-2)


def test_without_a_mask_of_dead_latents():
    with pytest.raises(ValueError, match="resample_every=5 needs to know which latents are dead"):
        one_step(new_sae(resample_every=5), torch.optim.SGD([torch.zeros(1)], lr=0.1), None, 5)


def test_jumprelu_latents_get_their_first_threshold():
    sae = new_sae(activation="jumprelu", k=None, jumprelu_init_threshold=0.02, resample_every=1)
    adam, dead = torch.optim.Adam(sae.parameters(), lr=0.0), torch.zeros(D_SAE, dtype=torch.bool)
    sae.threshold.data.fill_(0.5)
    dead[4] = True
    out = sae.training_forward_pass(
        TrainStepInput(next(activations()), {"l0": 0.1}, dead, 1, False)
    )
    out.loss.backward()
    adam.step()
    expected = torch.full((D_SAE,), 0.5)
    expected[4] = 0.02
    torch.testing.assert_close(sae.threshold.data, expected)


@pytest.mark.parametrize("driver", DRIVERS)
def test_every_driver(tmp_path, driver):
    """Of many latents with few places some never fire, unless they start anew."""
    never_fired = {}
    for name, options in {"never": {}, "resampled": {"resample_every": 10}}.items():
        cfg = new_sae(d_sae=200, **options).cfg
        run = DRIVERS[driver](cfg, tmp_path / name, steps=60, dead_feature_window=5)
        never_fired[name] = (run.trainer.n_forward_passes_since_fired == 60).sum().item()
    assert never_fired["resampled"] < never_fired["never"] - 20
