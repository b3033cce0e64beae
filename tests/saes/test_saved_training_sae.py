"""What `save_model` writes of an SAE in training opens as its inference SAE."""

import pytest
import torch
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from safetensors.torch import load_file

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
)

D_IN, D_SAE, WIDTHS, K = 12, 40, [4, 15, 40], 5


def trained(activation: str = "batchtopk", **options) -> MatryoshkaTrainingSAE:
    torch.manual_seed(0)
    if activation in ("batchtopk", "topk"):
        options["k"] = K
    sae = MatryoshkaTrainingSAE(
        MatryoshkaTrainingSAEConfig(
            d_in=D_IN, d_sae=D_SAE, activation=activation, matryoshka_widths=WIDTHS, **options
        )
    )
    for parameter in sae.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    coefficients = {name: c.value for name, c in sae.get_coefficients().items()}
    with torch.no_grad():
        sae.training_forward_pass(TrainStepInput(data(), coefficients, None, 0, False))
    return sae


def data() -> torch.Tensor:
    return torch.randn(300, D_IN, generator=torch.Generator().manual_seed(3))


class TestLevels:
    def test_of_an_sae_in_training(self):
        sae = trained()
        assert sae.widths == tuple(WIDTHS)
        matryoshka = MatryoshkaSAE.from_sae(sae)
        for index in (0, 1, -1):
            assert torch.equal(sae.level(index)(data()), matryoshka.level(index)(data()))
        with pytest.raises(IndexError, match="levels are 0 to 2"):
            sae.level(3)
        with pytest.raises(ValueError, match="calibrate_threshold"):
            trained("topk").level(0)
        assert torch.equal(sae.truncate(7)(data()), matryoshka.truncate(7)(data()))
        with pytest.raises(ValueError, match="width=0"):
            sae.truncate(0)


class TestSaveModel:
    @pytest.mark.parametrize("activation", ["batchtopk", "topk", "relu", "jumprelu"])
    @pytest.mark.parametrize("rescale", [True, False])
    def test_saelens_opens_the_inference_sae(self, tmp_path, activation, rescale):
        sae = trained(activation, rescale_acts_by_decoder_norm=rescale)
        sae.save_model(tmp_path)
        opened = SAE.load_from_disk(tmp_path)
        expected = MatryoshkaSAE.from_sae(sae).sae
        assert type(opened) is type(expected)
        assert type(opened).__module__.startswith("sae_lens.")
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(opened.state_dict()[name], tensor, msg=name)
        assert torch.equal(opened(data()), MatryoshkaSAE.load_from_disk(tmp_path).sae(data()))
        assert MatryoshkaSAE.from_sae(opened).widths == tuple(WIDTHS)

    def test_the_threshold_is_counted_although_weights_changed_since(self, tmp_path):
        sae = trained()
        sae.W_dec.data *= 3  # the running threshold lags behind
        sae.save_model(tmp_path)
        assert "matryoshka_counted_threshold" not in vars(sae.cfg.metadata)
        for opened in (SAE.load_from_disk(tmp_path), MatryoshkaSAE.load_from_disk(tmp_path).sae):
            assert (opened.encode(data()) > 0).sum() == K * len(data())
            assert "matryoshka_counted_threshold" not in vars(opened.cfg.metadata)

    def test_the_counted_threshold_follows_folded_statistics(self):
        sae = trained(normalize_activations="expected_average_only_in")
        counted = MatryoshkaSAE.from_sae(sae).threshold
        sae.counted_threshold = counted[0].item()
        sae.recent_activations = type(sae.recent_activations)()
        sae.fold_activation_norm_scaling_factor(0.5)
        torch.testing.assert_close(MatryoshkaSAE.from_sae(sae).threshold, counted / 0.5)

    def test_what_was_opened_is_saved_as_an_ordinary_sae(self, tmp_path):
        trained(latent_order="frequency").save_model(tmp_path / "training")
        opened = SAE.load_from_disk(tmp_path / "training", dtype="float64", fold_W_dec_norm=True)
        assert opened.dtype == opened.W_dec.dtype == torch.float64
        opened.save_model(tmp_path / "inference")
        assert '"architecture": "jumprelu"' in (tmp_path / "inference" / "cfg.json").read_text()
        again = SAE.load_from_disk(tmp_path / "inference")
        assert torch.equal(again(data()), opened(data()))
        opened.load_state_dict(again.state_dict())  # weights of inference, once it is loaded

    def test_training_opens_it_too(self, tmp_path):
        sae = trained()
        sae.save_model(tmp_path)
        again = TrainingSAE.load_from_disk(tmp_path)
        assert type(again) is MatryoshkaTrainingSAE
        fresh = MatryoshkaTrainingSAE(again.cfg)
        fresh.load_weights_from_checkpoint(tmp_path)
        for other in (again, fresh):
            for name, tensor in sae.state_dict().items():
                assert torch.equal(other.state_dict()[name], tensor), name

    @pytest.mark.parametrize("mode", ["expected_average_only_in", "covariance_whitening"])
    def test_a_checkpoint_that_needs_statistics(self, tmp_path, mode):
        trained(normalize_activations=mode).save_model(tmp_path)
        with pytest.raises(ValueError, match=r"MatryoshkaSAE\.load_from_disk"):
            SAE.load_from_disk(tmp_path)

    def test_paths(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        sae = trained()
        sae.save_model("~/training")
        sae.save_inference_model("~/inference")
        sae.load_weights_from_checkpoint("~/training")
        assert load_file(tmp_path / "inference" / "sae_weights.safetensors")["threshold"].all()
        assert (tmp_path / "training" / "cfg.json").is_file()
