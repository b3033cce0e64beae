"""SAEs side by side against SAELens's own runner, which trains one at a time."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import LoggingConfig, TrainingSAE
from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.synthetic import SyntheticModel, SyntheticSAERunner, SyntheticSAERunnerConfig
from sae_lens.training import sae_trainer
from safetensors.torch import load_file
from synthetic_helpers import TINY, config

from research.ground_truth import joint_training as lockstep
from research.ground_truth.random_state import OwnRandomness
from research.ground_truth.synthetic_config import SyntheticConfig

SEED = 7
ARMS: dict[str, Any] = {
    "flat": {"architecture": "batchtopk"},
    "stock": {
        "architecture": "matryoshka_batchtopk",
        "matryoshka_widths": [4, 16],
        "use_matryoshka_aux_loss": True,
        "training": {"dead_feature_window": 3},
    },
    "jumprelu": {"architecture": "jumprelu", "l0_warm_up_steps": 4},
    "ours": {"matryoshka_widths": [4, 16], "aux_loss": "per_level"},
    "best": {"recipe": "best"},
    "options": {
        "matryoshka_widths": [4, 8, 16],
        "detach_inner_levels": True,
        "latent_order": "energy",
        "k_start": 6,
        "k_anneal_steps": 4,
        "resample_every": 4,
        "refinement_step": 0.3,
        "refine_until": 5,
        "tilt": 0.5,
        "snap_after_steps": 3,
        "training": {"dead_feature_window": 3},
    },
    "random": {"prefix_sampling": "random"},  # which depend on the step's number
}


@pytest.fixture(scope="module")
def model() -> SyntheticModel:
    return SyntheticModel(TINY)


@pytest.fixture
def comparison(tmp_path: Path) -> SyntheticConfig:
    # a last batch goes beyond the samples, as SAELens has it
    return config(tmp_path, arms=ARMS, samples=1_000, lr=1e-3, lr_warm_up_steps=2, lr_decay_steps=3)


def new_pupil(comparison: SyntheticConfig, arm: str) -> lockstep.Pupil:
    sae = comparison.sae_config(arm, TINY.hidden_dim)
    trainer = replace(comparison.trainer_config(arm), feature_sampling_window=3)
    return lockstep.Pupil(sae, trainer, SEED)


def trained(
    comparison: SyntheticConfig, model: SyntheticModel, arms: list[str]
) -> dict[str, TrainingSAE[Any]]:
    training = new_training(comparison, model, arms)
    train_until(training, comparison.n_steps)
    return training.finish()


def new_training(
    comparison: SyntheticConfig, model: SyntheticModel, arms: list[str]
) -> lockstep.Lockstep:
    pupils = {arm: new_pupil(comparison, arm) for arm in arms}
    return lockstep.Lockstep(pupils, lockstep.Batches(model, comparison.batch_size, SEED))


def train_until(training: lockstep.Lockstep, step: int) -> None:
    while training.steps < step:
        training.step()


def test_each_is_trained_as_by_saelenss_runner(
    comparison: SyntheticConfig, model: SyntheticModel, monkeypatch: pytest.MonkeyPatch
):
    # the one difference, which rounds differently
    monkeypatch.setattr(sae_trainer, "Adam", partial(torch.optim.Adam, fused=True))
    together = trained(comparison, model, list(ARMS))
    for arm in ARMS:
        reference = SyntheticSAERunner(
            SyntheticSAERunnerConfig(
                synthetic_model=TINY,
                sae=comparison.sae_config(arm, TINY.hidden_dim),
                training_samples=1_000,
                batch_size=128,
                lr=1e-3,
                lr_warm_up_steps=2,
                lr_decay_steps=3,
                output_path=None,
                run_final_eval=False,
                feature_sampling_window=3,
                logger=LoggingConfig(log_to_wandb=False),
                dead_feature_window=comparison.trainer_config(arm).dead_feature_window,
            ),
            override_synthetic_model=model,
            override_sae=new_pupil(comparison, arm).sae,
        )
        with OwnRandomness(lockstep.BATCHES, SEED).active():
            alone = reference.run().sae
        assert alone.state_dict().keys() == together[arm].state_dict().keys()
        for name, tensor in alone.state_dict().items():
            assert torch.equal(tensor, together[arm].state_dict()[name]), (arm, name)
        assert alone.cfg.metadata.l0 == together[arm].cfg.metadata.l0


def test_an_sae_does_not_depend_on_the_others(comparison: SyntheticConfig, model: SyntheticModel):
    few, many = trained(comparison, model, ["ours"]), trained(comparison, model, list(ARMS))
    assert torch.equal(few["ours"].W_dec, many["ours"].W_dec)


def test_the_batches_are_the_seeds_whatever_draws_between(model: SyntheticModel):
    alone, disturbed = (lockstep.Batches(model, 16, SEED) for _ in range(2))
    first, second = alone.next(), alone.next()
    for expected in (first, second):
        torch.rand(100)
        assert torch.equal(disturbed.next(), expected)
    assert not torch.equal(first, second)
    assert not torch.equal(first, lockstep.Batches(model, 16, SEED + 1).next())


def test_a_batch_of_a_large_model_is_drawn_in_parts(
    model: SyntheticModel, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lockstep, "VALUES_AT_A_TIME", 6 * TINY.num_features + 1)
    found = lockstep.Batches(model, 16, SEED).next()
    with OwnRandomness(lockstep.BATCHES, SEED).active():
        expected = torch.cat([model.sample(6), model.sample(6), model.sample(4)])
    torch.testing.assert_close(found, expected)  # a sparse product rounds differently


def test_an_sae_draws_as_if_it_were_alone(comparison: SyntheticConfig):
    drawn: list[list[float]] = []
    for others in (0, 3):
        pupil = new_pupil(comparison, "flat")
        drawn.append([])
        pupil.sae.training_forward_pass = drawing(pupil.sae.training_forward_pass, drawn[-1])
        for _ in range(2):
            torch.rand(others)
            pupil.step(torch.ones(4, TINY.hidden_dim))
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]


def drawing(forward: Callable[..., Any], drawn: list[float]) -> Callable[..., Any]:
    def draw_and_go_on(**kwargs: Any) -> Any:
        drawn.append(torch.rand(()).item())
        return forward(**kwargs)

    return draw_and_go_on


def test_weights_that_are_not_finite_are_an_error_that_names_the_sae(
    comparison: SyntheticConfig, model: SyntheticModel
):
    pupils = {"good": new_pupil(comparison, "flat"), "bad": new_pupil(comparison, "flat")}
    pupils["bad"].sae.W_dec.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^bad: the weights are not finite"):
        lockstep.Lockstep(pupils, lockstep.Batches(model, 16, SEED)).finish()
    pupils = {"ours": new_pupil(comparison, "ours")}
    pupils["ours"].sae.W_enc.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"^ours: .*finite"):  # at its first step
        lockstep.Lockstep(pupils, lockstep.Batches(model, 16, SEED)).step()


def test_it_goes_on_from_what_it_saved_as_if_nothing_had_been(
    comparison: SyntheticConfig, model: SyntheticModel, tmp_path: Path
):
    straight = new_training(comparison, model, list(ARMS))
    train_until(straight, 5)  # inside windows, a schedule and the annealing of k
    straight.save(tmp_path)
    train_until(straight, comparison.n_steps)
    resumed = new_training(comparison, model, list(ARMS))
    resumed.load(tmp_path)
    assert resumed.steps == 5
    train_until(resumed, comparison.n_steps)
    found, expected = resumed.finish(), straight.finish()
    for arm in ARMS:
        weights = saved_weights(found[arm], tmp_path / "found" / arm)
        for name, tensor in saved_weights(expected[arm], tmp_path / "expected" / arm).items():
            assert torch.equal(weights[name], tensor), (arm, name)
        assert found[arm].cfg.metadata.l0 == expected[arm].cfg.metadata.l0


def saved_weights(sae: TrainingSAE[Any], folder: Path) -> dict[str, torch.Tensor]:
    sae.save_inference_model(folder)
    return load_file(folder / SAE_WEIGHTS_FILENAME)
