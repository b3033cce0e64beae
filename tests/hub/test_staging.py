"""What may be published, and the files it becomes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import WIDTHS, random_sae
from runner_helpers import interrupted, make_runner, tidy_process  # noqa: F401
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from sae_lens.saes.topk_sae import TopKSAE, TopKSAEConfig
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
)
from sae_lens_matryoshka.hub.staging import parent_of, stage, write
from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.levels.measurements import measurement, record, results_of
from sae_lens_matryoshka.saes.inference_sae import copy_of, inference_form

METADATA = {"model_name": "m", "hook_name": "blocks.0.hook_resid_post", "context_size": 64}


def one(given: Any, levels: bool = False) -> Any:
    return stage("a", given, levels)


def topk_sae() -> TopKSAE:
    torch.manual_seed(0)
    details = {"matryoshka_widths": [8, 32]}
    metadata = SAEMetadata(**METADATA, training_architecture_details=details)
    sae = TopKSAE(TopKSAEConfig(d_in=16, d_sae=32, k=4, metadata=metadata))
    sae.W_dec.data = torch.nn.functional.normalize(torch.randn(32, 16), dim=-1)
    return sae


def training_sae(**options: Any) -> MatryoshkaTrainingSAE:
    torch.manual_seed(0)
    cfg = MatryoshkaTrainingSAEConfig(
        d_in=16,
        d_sae=32,
        k=4,
        matryoshka_widths=[8, 32],
        metadata=SAEMetadata(**METADATA),
        **options,
    )
    sae = MatryoshkaTrainingSAE(cfg)
    sae.training_forward_pass(TrainStepInput(torch.randn(200, 16), {}, None, 0, False))
    return sae


class TestForms:
    def test_a_training_sae_ends_as_its_inference_form(self):
        sae = training_sae()
        before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
        staged = one(sae)
        assert staged.sae.cfg.architecture() == "jumprelu"
        assert staged.widths == (8, 32)
        x = torch.randn(20, 16)
        torch.testing.assert_close(staged.sae(x), inference_form(sae)(x))
        assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())

    def test_a_checkpoint_of_training_folds_its_statistics(self, tmp_path):
        sae = training_sae(normalize_activations="expected_average_only_in")
        sae.save_model(tmp_path)
        scaler = ActivationScaler(scaling_factor=2.5)
        scaler.save(str(tmp_path / "activation_scaler.json"))
        staged = one(tmp_path)
        sae.fold_activation_norm_scaling_factor(2.5)
        assert staged.sae.cfg.normalize_activations == "none"
        torch.testing.assert_close(staged.sae.W_enc, inference_form(sae).W_enc)

    def test_a_checkpoint_says_how_many_tokens_it_has_seen(self, tmp_path):
        checkpoint = interrupted(make_runner(tmp_path), step=11)
        staged = one(checkpoint)
        assert staged.sae.cfg.metadata.trained_tokens == 11 * 32
        planned = json.loads(staged.runner_cfg.read_text())["training_tokens"]
        assert planned == 24 * 32  # what runner_cfg.json beside it says

    def test_a_checkpoints_frequencies_follow_the_order_that_is_saved(self, tmp_path):
        sae = training_sae(latent_order="frequency")
        x = torch.randn(2000, 16)
        sae.training_forward_pass(TrainStepInput(x, {}, None, 1, False))
        sae.save_model(tmp_path)
        fires = (sae.encode(x) > 0).float().mean(dim=0)  # as they are trained
        save_file({"sparsity": fires.log10()}, tmp_path / "sparsity.safetensors")
        staged = one(tmp_path)
        assert staged.sparsity is not None
        as_saved = (staged.sae.encode(x) > 0).float().mean(dim=0)
        together = torch.corrcoef(torch.stack([10**staged.sparsity, as_saved]))[0, 1]
        apart = torch.corrcoef(torch.stack([fires, as_saved]))[0, 1]
        assert together > 0.95
        assert apart < 0.8

    def test_statistics_that_are_missing(self, tmp_path):
        sae = training_sae(normalize_activations="expected_average_only_in")
        with pytest.raises(ValueError, match="statistics that are not in its weights"):
            one(sae)

    def test_a_matryoshka_sae_says_its_levels(self):
        sae = random_sae(widths=[40])
        staged = one(MatryoshkaSAE(sae, [20, 100]))
        assert staged.widths == (20, 100, WIDTHS[-1])
        details = staged.sae.cfg.metadata.training_architecture_details
        assert details["matryoshka_widths"] == [20, 100, WIDTHS[-1]]
        assert sae.cfg.metadata.training_architecture_details["matryoshka_widths"] == [40]

    def test_a_flat_sae_has_none(self):
        assert one(random_sae()).widths is None

    def test_levels_named_beside_the_sae_only(self, tmp_path):
        random_sae().save_model(tmp_path)
        (tmp_path / "runner_cfg.json").write_text('{"sae": {"matryoshka_widths": [10, 160]}}')
        assert one(tmp_path).widths == (10, 160)

    def test_results_of_other_thresholds_are_left_out(self, caplog):
        sae = random_sae(widths=WIDTHS)
        record(sae, {16: {"L0": measurement([9.5])}})
        assert results_of(one(sae).sae.cfg.metadata, 16)
        sae.threshold.data += 1
        assert not results_of(one(sae).sae.cfg.metadata, 16)
        assert "measured on other weights or thresholds" in caplog.text
        assert results_of(sae.cfg.metadata, 16)  # the caller's object stays

    def test_sparsity_of_another_sae(self, tmp_path):
        random_sae().save_model(tmp_path)
        save_file({"sparsity": torch.zeros(64)}, tmp_path / "sparsity.safetensors")
        with pytest.raises(ValueError, match="has 160 latents, but the sparsity.safetensors"):
            one(tmp_path)

    def test_no_sae_there(self, tmp_path):
        random_sae().save_model(tmp_path / "output" / "sae")
        with pytest.raises(FileNotFoundError, match="There are SAEs in .*/output/sae"):
            one(tmp_path / "output")


class TestRefusals:
    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_numbers_that_are_not_finite(self, value):
        sae = random_sae()
        sae.W_enc.data[3, 5] = value
        with pytest.raises(ValueError, match="not finite in W_enc"):
            one(sae)

    def test_decoder_norms(self):
        sae = random_sae()
        sae.W_dec.data[7] *= 1.01
        with pytest.raises(ValueError, match=r"from 1 to 1.01.*sae.fold_W_dec_norm\(\)"):
            one(sae)
        sae.fold_W_dec_norm()
        one(sae)

    @pytest.mark.parametrize(
        ("rescale", "what_to_do"), [(False, "as_jumprelu=True"), (True, r"sae.fold_W_dec_norm\(\)")]
    )
    def test_decoder_norms_of_a_topk_sae(self, rescale, what_to_do):
        sae = topk_sae()
        sae.cfg.rescale_acts_by_decoder_norm = rescale
        one(sae)
        sae.W_dec.data *= 2
        with pytest.raises(ValueError, match=what_to_do):
            one(sae)

    def test_a_decoder_row_of_zeros_does_nothing(self):
        sae = random_sae()
        sae.W_dec.data[7] = 0
        one(sae)

    def test_bfloat16_rounds_norms(self):
        sae = copy_of(random_sae()).to(dtype=torch.bfloat16)
        one(sae)

    @pytest.mark.parametrize("key", ["model_name", "hook_name", "context_size", "sae_lens_version"])
    def test_metadata_that_is_missing(self, key):
        sae = random_sae()
        sae.cfg.metadata[key] = None
        with pytest.raises(ValueError, match=rf"Set sae.cfg.metadata.{key} = ..."):
            one(sae)

    def test_levels_of_a_topk_sae(self):
        with pytest.raises(ValueError, match="as_jumprelu=True"):
            one(topk_sae(), levels=True)

    def test_levels_of_a_flat_sae(self):
        with pytest.raises(ValueError, match="names no matryoshka_widths"):
            one(random_sae(), levels=True)
        with pytest.raises(ValueError, match=f"names only its own width, {WIDTHS[-1]}: it is flat"):
            one(random_sae(widths=WIDTHS[-1:]), levels=True)


def test_files(tmp_path: Path):
    sae = random_sae(widths=WIDTHS)
    sae.save_model(tmp_path / "sae")
    sparsity = torch.linspace(-10, -1, WIDTHS[-1])
    save_file({"sparsity": sparsity}, tmp_path / "sae" / "sparsity.safetensors")
    (tmp_path / "sae" / "runner_cfg.json").write_text('{"lr": 1}')
    tree = tmp_path / "repo"
    staged = stage("deep/er", tmp_path / "sae", levels=True)
    widths = {f"deep/er/level_{i}_width_{w}": w for i, w in enumerate(WIDTHS[:-1])}
    widths["deep/er"] = WIDTHS[-1]
    write(staged, True, tree)
    assert {str(cfg.parent.relative_to(tree)) for cfg in tree.rglob("cfg.json")} == set(widths)
    for sae_id, width in widths.items():
        stock = SAE.load_from_disk(tree / sae_id)
        assert torch.equal(stock.W_dec, sae.W_dec[:width])
        assert torch.equal(
            load_file(tree / sae_id / "sparsity.safetensors")["sparsity"], sparsity[:width]
        )
        cfg = json.loads((tree / sae_id / "cfg.json").read_text())
        assert cfg["metadata"]["sae_lens_version"]
    assert [p.parent.name for p in tree.rglob("runner_cfg.json")] == ["er"]


def test_a_level_names_its_parent(tmp_path: Path):
    sae = random_sae(widths=WIDTHS)
    write(stage("deep/er", sae, levels=True), True, tmp_path)
    cfg = json.loads((tmp_path / "deep" / "er" / "level_1_width_64" / "cfg.json").read_text())
    origin = cfg["metadata"]["matryoshka_level"]
    assert (origin["parent_sae_id"], origin["level"], origin["width"]) == ("deep/er", 1, 64)
    whole = SAE.load_from_disk(tmp_path / "deep" / "er")
    assert origin["parent_fingerprint"] == fingerprint(whole) == fingerprint(sae)
    assert parent_of(cfg) == "deep/er"
    assert parent_of(json.loads((tmp_path / "deep" / "er" / "cfg.json").read_text())) is None


@pytest.mark.parametrize("metadata", [None, {}, {"matryoshka_level": "x"}])
def test_what_is_no_level_has_no_parent(metadata: Any):
    assert parent_of({"metadata": metadata}) is None


def test_levels_take_along_what_is_known_of_them(tmp_path: Path):
    sae = random_sae(widths=WIDTHS)
    record(sae, {width: {"L0": measurement([float(width)])} for width in WIDTHS})
    sae.cfg.metadata.level_results_notes = ["a note"]
    write(stage("a", sae, levels=True), True, tmp_path)
    level = stage("b", tmp_path / "a" / "level_1_width_64").sae  # published again on its own
    assert results_of(level.cfg.metadata, 64) == {"L0": {"mean": 64.0}}
    assert results_of(level.cfg.metadata, 16) == {"L0": {"mean": 16.0}}
    assert results_of(level.cfg.metadata, 160) == {}
    assert level.cfg.metadata.level_results_notes == ["a note"]


def test_the_mark_of_another_package_goes_where_it_no_longer_holds():
    sae = random_sae()
    sae.cfg.metadata.needs_package = "their_package"
    assert stage("a", sae).sae.cfg.metadata.needs_package is None
