"""Converted checkpoints compute, at every level, what their own library computes."""

import importlib.util
import json
import pickle
import shutil
import sys
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sae_lens import (
    SAE,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TrainingSAE,
)
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file, save_file

from sae_lens_matryoshka import (
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
)
from sae_lens_matryoshka.convert.convert import convert
from sae_lens_matryoshka.loading.hub_access import NotFetchedError

D_IN, D_SAE, GROUPS, K = 16, 64, [8, 24, 32], 4
WIDTHS = list(accumulate(GROUPS))
HOOK = "blocks.3.hook_resid_post"
BUFFER = {"d_submodule": D_IN, "io": "out", "n_ctxs": 300, "ctx_len": 128, "device": "cpu"}


def data(n: int = 400, seed: int = 3) -> torch.Tensor:
    """Sparse mixtures of fixed directions, away from zero."""
    directions = torch.randn(48, D_IN, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    coefficients = torch.rand(n, 48, generator=generator)
    is_active = torch.rand(n, 48, generator=generator) < 0.1
    return (coefficients * is_active) @ directions + 0.5


def random_weights(threshold: float = 0.3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "W_enc": torch.randn(D_IN, D_SAE, generator=generator) / 3,
        "b_enc": torch.randn(D_SAE, generator=generator) / 10,
        "W_dec": torch.randn(D_SAE, D_IN, generator=generator) / 5,
        "b_dec": torch.randn(D_IN, generator=generator) / 10,
        "threshold": torch.tensor(threshold),
    }


def nested_outputs(
    weights: dict[str, torch.Tensor], x: torch.Tensor, widths: list[int] = WIDTHS
) -> torch.Tensor:
    """(levels, tokens, d_in)"""
    acts = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    acts = acts * (acts > weights["threshold"])
    return torch.stack([acts[:, :w] @ weights["W_dec"][:w] + weights["b_dec"] for w in widths])


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def edit(file: Path, section: str | None = None, **values: Any) -> None:
    """Set keys of a JSON file; those that are given as ... are removed."""
    config = json.loads(file.read_text())
    target = config if section is None else config[section]
    target.update(values)
    for key in [key for key, value in target.items() if value is ...]:
        del target[key]
    file.write_text(json.dumps(config))


def assert_converted(out: Path, matryoshka: MatryoshkaSAE, expected: torch.Tensor) -> None:
    """What is saved opens with stock SAELens and gives the expected outputs at every level."""
    x = data()
    assert torch.equal(SAE.load_from_disk(out)(x), matryoshka.sae(x))
    opened = MatryoshkaSAE.load_from_disk(out)
    assert opened.widths == matryoshka.widths
    assert opened.sae.cfg.dtype == "float32"
    nested = opened.reconstructions(x)
    assert len(nested) == len(expected)
    for index, want in enumerate(expected):
        torch.testing.assert_close(nested[index], want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(opened.level(index)(x), want, rtol=1e-5, atol=1e-5)
    norms = opened.sae.W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones_like(norms), rtol=0, atol=1e-6)


# ---- dictionary_learning


def dictionary_learning_config(**trainer: Any) -> dict[str, Any]:
    settings = {
        "trainer_class": "MatryoshkaBatchTopKTrainer",
        "dict_class": "MatryoshkaBatchTopKSAE",
        "activation_dim": D_IN,
        "dict_size": D_SAE,
        "group_weights": [0.2, 0.3, 0.5],
        "group_sizes": GROUPS,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-160m-deduped",
        "submodule_name": "resid_post_layer_3",
    }
    return {"trainer": settings | trainer, "buffer": BUFFER}


@pytest.fixture
def by_hand(tmp_path: Path) -> Path:
    """A checkpoint of dictionary_learning's format, for tests that need no training."""
    folder = tmp_path / "dictionary_learning"
    folder.mkdir()
    weights = random_weights() | {"k": torch.tensor(K), "group_sizes": torch.tensor(GROUPS)}
    torch.save(weights, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(dictionary_learning_config()))
    return folder


@pytest.fixture(scope="module")
def trainer_class() -> Any:
    if importlib.util.find_spec("dictionary_learning") is None:
        pytest.skip("dictionary_learning is not installed")
    with pytest.MonkeyPatch.context() as patch:
        # its model buffer imports nnsight, which its trainers do not use
        patch.setitem(sys.modules, "nnsight", SimpleNamespace(LanguageModel=object))
        from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKTrainer
    return MatryoshkaBatchTopKTrainer


def trained_with(trainer_class: Any, folder: Path, steps: int = 300) -> Any:
    """Their SAE, saved as their trainSAE saves it."""
    trainer = trainer_class(
        steps=steps,
        activation_dim=D_IN,
        dict_size=D_SAE,
        k=K,
        layer=3,
        lm_name="EleutherAI/pythia-160m-deduped",
        group_fractions=[size / D_SAE for size in GROUPS],
        group_weights=[0.2, 0.3, 0.5],
        lr=3e-3,
        warmup_steps=10,
        threshold_start_step=100,
        threshold_beta=0.9,
        seed=0,
        device="cpu",
    )
    folder.mkdir()
    config = {"trainer": trainer.config, "buffer": BUFFER}
    (folder / "config.json").write_text(json.dumps(config))
    for step in range(steps):
        trainer.update(step, data(256, seed=step))
    torch.save(trainer.ae.state_dict(), folder / "ae.pt")
    return trainer.ae


@torch.no_grad()
def outputs_by_group(ae: Any, x: torch.Tensor) -> torch.Tensor:
    outputs = []
    for groups in range(1, len(GROUPS) + 1):
        ae.active_groups = groups
        outputs.append(ae(x))
    return torch.stack(outputs)


class TestDictionaryLearning:
    def test_trained_by_their_package(self, tmp_path, trainer_class):
        ae = trained_with(trainer_class, tmp_path / "theirs")
        assert ae.threshold > 0
        before = contents(tmp_path / "theirs")
        matryoshka = convert(tmp_path / "theirs", tmp_path / "out")
        expected = outputs_by_group(ae, data())
        assert not torch.allclose(expected[0], expected[2], atol=0.1)
        assert_converted(tmp_path / "out", matryoshka, expected)
        assert contents(tmp_path / "theirs") == before
        metadata = matryoshka.sae.cfg.metadata
        assert (metadata.model_name, metadata.hook_name) == ("pythia-160m-deduped", HOOK)
        assert (metadata.context_size, metadata.dataset_path) == (128, None)
        assert metadata.training_architecture_details == {
            "matryoshka_widths": WIDTHS,
            "k": K,
            "level_weights": [0.2, 0.3, 0.5],
            "threshold": ae.threshold.item(),
        }
        assert metadata.source_config == json.loads(before["config.json"])

    def test_their_threshold_was_never_set(self, tmp_path, trainer_class, caplog):
        ae = trained_with(trainer_class, tmp_path / "theirs", steps=50)
        assert ae.threshold < 0
        matryoshka = convert(tmp_path / "theirs", tmp_path / "out")
        assert_converted(tmp_path / "out", matryoshka, outputs_by_group(ae, data()))
        assert any("calibrate_threshold" in text for text in caplog.messages)
        assert (matryoshka.sae.threshold == 0).all()

    def test_decoder_norms_are_folded(self, tmp_path, by_hand):
        matryoshka = convert(by_hand, tmp_path / "out")
        assert_converted(tmp_path / "out", matryoshka, nested_outputs(random_weights(), data()))

    def test_decoder_rows_of_zero(self, tmp_path, by_hand):
        weights = torch.load(by_hand / "ae.pt")
        weights["W_dec"][5] = 0.0
        weights["W_dec"][40] *= 1e-12
        torch.save(weights, by_hand / "ae.pt")
        matryoshka = convert(by_hand, tmp_path / "out")
        expected = nested_outputs(weights, data())
        torch.testing.assert_close(matryoshka.reconstructions(data()), expected)
        norms = matryoshka.sae.W_dec.norm(dim=-1)
        assert norms[[5, 40]].tolist() == [0.0, 0.0]
        assert ((norms - 1).abs() < 1e-6).sum() == D_SAE - 2

    def test_half_precision_becomes_float32(self, tmp_path, by_hand):
        weights = torch.load(by_hand / "ae.pt")
        halved = {k: v.half() if v.is_floating_point() else v for k, v in weights.items()}
        torch.save(halved, by_hand / "ae.pt")
        matryoshka = convert(by_hand, tmp_path / "out")
        exact = {k: v.float() for k, v in halved.items()}
        assert_converted(tmp_path / "out", matryoshka, nested_outputs(exact, data()))

    @pytest.mark.parametrize(
        ("io", "submodule_name", "hook_name"),
        [
            ("out", None, HOOK),
            (..., "resid_post_layer_3", HOOK),
            ("in", None, "blocks.3.hook_resid_pre"),
        ],
    )
    def test_hooks_of_the_residual_stream(self, tmp_path, by_hand, io, submodule_name, hook_name):
        edit(by_hand / "config.json", "buffer", io=io)
        edit(by_hand / "config.json", "trainer", submodule_name=submodule_name)
        assert convert(by_hand, tmp_path / "out").sae.cfg.metadata.hook_name == hook_name

    @pytest.mark.parametrize(
        ("section", "values"),
        [
            ("trainer", {"submodule_name": "mlp_3"}),
            ("trainer", {"submodule_name": "resid_post_layer_4"}),
            ("trainer", {"layer": ...}),
            ("buffer", {"io": ..., "layer": 3}),  # attention heads
        ],
    )
    def test_other_hooks_must_be_given(self, tmp_path, by_hand, section, values):
        edit(by_hand / "config.json", section, **values)
        with pytest.raises(ValueError, match="hook_name='blocks.8.hook_mlp_out'"):
            convert(by_hand, tmp_path / "out")
        given = convert(by_hand, tmp_path / "out", hook_name="blocks.3.hook_mlp_out")
        assert given.sae.cfg.metadata.hook_name == "blocks.3.hook_mlp_out"

    def test_a_transcoder(self, tmp_path, by_hand):
        edit(by_hand / "config.json", "buffer", io="in_and_out")
        with pytest.raises(ValueError, match="a transcoder and no"):
            convert(by_hand, tmp_path / "out", hook_name=HOOK)

    def test_without_what_only_the_buffer_says(self, tmp_path, by_hand):
        edit(by_hand / "config.json", buffer=...)
        metadata = convert(by_hand, tmp_path / "out", context_size=64).sae.cfg.metadata
        assert (metadata.hook_name, metadata.context_size) == (HOOK, 64)

    @pytest.mark.parametrize("dict_class", ["BatchTopKSAE", "AutoEncoderTopK"])
    def test_a_class_without_levels(self, tmp_path, by_hand, dict_class):
        edit(by_hand / "config.json", "trainer", dict_class=dict_class)
        with pytest.raises(ValueError, match=f"{dict_class}, which has no levels.*_loader_1"):
            convert(by_hand, tmp_path / "out")

    def test_a_config_that_lacks_keys(self, tmp_path, by_hand):
        edit(by_hand / "config.json", "trainer", dict_size=...)
        with pytest.raises(ValueError, match="config.json: trainer lacks dict_size"):
            convert(by_hand, tmp_path / "out")

    def test_shapes_that_do_not_fit(self, tmp_path, by_hand):
        weights = torch.load(by_hand / "ae.pt")
        weights["b_enc"] = weights["b_enc"][:-1]
        weights["r_mag"] = weights.pop("k")
        torch.save(weights, by_hand / "ae.pt")
        with pytest.raises(
            ValueError,
            match=r"k is missing; r_mag is unknown; b_enc has the shape \(63,\), not \(64,\)",
        ):
            convert(by_hand, tmp_path / "out")

    def test_groups_that_do_not_agree(self, tmp_path, by_hand):
        edit(by_hand / "config.json", "trainer", group_sizes=[32, 32])
        with pytest.raises(ValueError, match=r"group_sizes=\[8, 24, 32\].* \[32, 32\]"):
            convert(by_hand, tmp_path / "out")

    @pytest.mark.parametrize("groups", [[8, 24], [72, -8], [], "levels"])
    def test_groups_that_do_not_sum_to_the_width(self, tmp_path, by_hand, groups):
        weights = torch.load(by_hand / "ae.pt")
        del weights["group_sizes"]
        torch.save(weights, by_hand / "ae.pt")
        edit(by_hand / "config.json", "trainer", group_sizes=groups)
        with pytest.raises(ValueError, match="whole numbers that sum to dict_size=64"):
            convert(by_hand, tmp_path / "out")


# ---- the authors' matryoshka_sae


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A checkpoint as their code saves it: what is no plain value becomes text."""
    folder = tmp_path / "authors"
    folder.mkdir()
    torch.save(random_weights(), folder / "sae.pt")
    config = {
        "seed": 49,
        "lr": 3e-4,
        "seq_len": 1024,
        "dtype": "torch.float32",
        "model_name": "gemma-2-2b",
        "site": "resid_pre",
        "layer": 8,
        "act_size": D_IN,
        "dict_size": D_SAE,
        "dataset_path": "Skylion007/openwebtext",
        "input_unit_norm": False,
        "sae_type": "global-matryoshka-topk",
        "top_k": K,
        "group_sizes": str(GROUPS),
        "hook_point": "blocks.8.hook_resid_pre",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def authors_outputs(x: torch.Tensor, input_unit_norm: bool) -> torch.Tensor:
    weights = random_weights()
    weights["b_enc"] = torch.zeros(D_SAE)  # their encoder has none
    if not input_unit_norm:
        return nested_outputs(weights, x)
    mean, std = x.mean(dim=-1, keepdim=True), x.std(dim=-1, keepdim=True)
    return nested_outputs(weights, (x - mean) / (std + 1e-5)) * std + mean


class TestAuthorsCode:
    @pytest.mark.parametrize("input_unit_norm", [False, True])
    @pytest.mark.parametrize("group_sizes", [str(GROUPS), str(tuple(GROUPS)), GROUPS])
    def test_outputs(self, tmp_path, authors, input_unit_norm, group_sizes):
        values = {"input_unit_norm": input_unit_norm, "group_sizes": group_sizes}
        edit(authors / "config.json", **values)
        before = contents(authors)
        matryoshka = convert(authors, tmp_path / "out")
        expected = authors_outputs(data(), input_unit_norm)
        assert_converted(tmp_path / "out", matryoshka, expected)
        assert contents(authors) == before

    def test_metadata(self, tmp_path, authors):
        metadata = convert(authors, tmp_path / "out").sae.cfg.metadata
        assert (metadata.model_name, metadata.hook_name, metadata.context_size) == (
            "gemma-2-2b",
            "blocks.8.hook_resid_pre",
            1024,
        )
        assert metadata.dataset_path == "Skylion007/openwebtext"
        assert metadata.training_architecture_details["matryoshka_widths"] == WIDTHS
        assert metadata.training_architecture_details["k"] == K
        assert metadata.source_config["lr"] == 3e-4
        assert metadata.sae_lens_training_version is None

    def test_an_sae_without_levels(self, tmp_path, authors):
        edit(authors / "config.json", sae_type="batch-topk")
        with pytest.raises(ValueError, match="'batch-topk', which has no levels"):
            convert(authors, tmp_path / "out")

    @pytest.mark.parametrize("groups", ["__import__('os').getcwd()", "(" * 10_000, "8"])
    def test_groups_that_are_no_list(self, tmp_path, authors, groups):
        edit(authors / "config.json", group_sizes=groups)
        with pytest.raises(ValueError, match="must be positive whole numbers"):
            convert(authors, tmp_path / "out")


# ---- SAELens


def trained_by_saelens(ours: bool = False, **options: Any) -> TrainingSAE[Any]:
    torch.manual_seed(0)
    options |= {"d_in": D_IN, "d_sae": D_SAE, "k": K, "matryoshka_widths": list(WIDTHS)}
    options["metadata"] = SAEMetadata(model_name="m", hook_name=HOOK, context_size=32)
    sae: TrainingSAE[Any] = (
        MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(**options))
        if ours
        else MatryoshkaBatchTopKTrainingSAE(MatryoshkaBatchTopKTrainingSAEConfig(**options))
    )
    for parameter in sae.parameters():
        parameter.data += torch.randn_like(parameter) * 0.1
    return sae


def saved_in_training(folder: Path, sae: TrainingSAE[Any]) -> ActivationScaler:
    """The files of a checkpoint, statistics included."""
    scaler, mode = ActivationScaler(), sae.cfg.normalize_activations
    batches = iter([data(seed=seed) for seed in range(5)])
    if mode == "expected_average_only_in":
        scaler.estimate_scaling_factor(D_IN, batches, 5)
    if mode == "covariance_whitening":
        scaler.estimate_whitening(D_IN, batches, 5)
    for step in range(5):
        x = scaler.scale(data(seed=step))
        sae.training_forward_pass(TrainStepInput(x, {}, None, step, False))
    sae.save_model(folder)
    scaler.save(str(folder / "activation_scaler.json"))
    return scaler


@torch.no_grad()
def outputs_in_training(sae: TrainingSAE[Any], scaler: ActivationScaler) -> torch.Tensor:
    """With a threshold in the top-k's place; (levels, tokens, d_in)"""
    if isinstance(sae, MatryoshkaTrainingSAE):  # its checkpoints hold what it would save
        state = sae.state_dict()
        sae.process_state_dict_for_saving_inference(state)
        threshold = state["threshold"]
    else:
        threshold = sae.topk_threshold
    norms = sae.W_dec.norm(dim=-1) if sae.cfg.rescale_acts_by_decoder_norm else torch.ones(D_SAE)
    x = sae.run_time_activation_norm_fn_in(scaler.scale(data()))
    weights = {
        "W_enc": sae.W_enc * norms,
        "b_enc": sae.b_enc * norms,
        "W_dec": sae.W_dec / norms[:, None],
        "b_dec": sae.b_dec,
        "threshold": threshold,
    }
    outputs = sae.run_time_activation_norm_fn_out(nested_outputs(weights, x))
    return torch.stack([scaler.unscale(level) for level in outputs])


FOLDED = ["expected_average_only_in", "covariance_whitening"]
THEIRS = [(False, mode) for mode in ["none", *FOLDED]]  # their training raises with layer_norm
OURS = [(True, mode) for mode in ["none", "layer_norm", *FOLDED]]


class TestSAELens:
    @pytest.mark.parametrize("rescale", [False, True])
    @pytest.mark.parametrize(("ours", "mode"), [*THEIRS, *OURS])
    def test_a_training_checkpoint(self, tmp_path, ours, mode, rescale):
        sae = trained_by_saelens(
            ours, rescale_acts_by_decoder_norm=rescale, normalize_activations=mode
        )
        scaler = saved_in_training(tmp_path / "checkpoint", sae)
        before = contents(tmp_path / "checkpoint")
        matryoshka = convert(tmp_path / "checkpoint", tmp_path / "out")
        assert isinstance(matryoshka.sae, JumpReLUSAE)
        assert_converted(tmp_path / "out", matryoshka, outputs_in_training(sae, scaler))
        assert contents(tmp_path / "checkpoint") == before

    def test_frequencies_follow_the_order_that_is_saved(self, tmp_path):
        sae = trained_by_saelens(ours=True, latent_order="frequency")
        saved_in_training(tmp_path / "checkpoint", sae)
        fires = (sae.encode(data()) > 0).float().mean(dim=0)  # as they are trained
        save_file({"sparsity": fires.log10()}, tmp_path / "checkpoint" / "sparsity.safetensors")
        matryoshka = convert(tmp_path / "checkpoint", tmp_path / "out")
        saved = 10 ** load_file(tmp_path / "out" / "sparsity.safetensors")["sparsity"]
        as_saved = (matryoshka.sae.encode(data()) > 0).float().mean(dim=0)
        assert torch.corrcoef(torch.stack([saved, as_saved]))[0, 1] > 0.9
        assert torch.corrcoef(torch.stack([fires, as_saved]))[0, 1] < 0.8

    def test_bfloat16_is_folded_in_float32(self, tmp_path):
        sae = trained_by_saelens(dtype="bfloat16", rescale_acts_by_decoder_norm=True)
        scaler = saved_in_training(tmp_path / "checkpoint", sae)
        exact = TrainingSAE.load_from_disk(tmp_path / "checkpoint", dtype="float32")
        matryoshka = convert(tmp_path / "checkpoint", tmp_path / "out")
        assert_converted(tmp_path / "out", matryoshka, outputs_in_training(exact, scaler))

    def test_what_training_saved_at_its_end(self, tmp_path):
        trained_by_saelens().save_inference_model(tmp_path / "sae")
        save_file({"sparsity": torch.zeros(D_SAE)}, tmp_path / "sae" / "sparsity.safetensors")
        matryoshka = convert(tmp_path / "sae", tmp_path / "out")
        expected = MatryoshkaSAE.load_from_disk(tmp_path / "sae").reconstructions(data())
        assert_converted(tmp_path / "out", matryoshka, expected)
        assert {*contents(tmp_path / "out")} == {*contents(tmp_path / "sae")}

    def test_a_relu_sae_with_other_norms(self, tmp_path):
        sae = StandardSAE(StandardSAEConfig(d_in=D_IN, d_sae=D_SAE))
        weights = random_weights(threshold=0.0)
        del weights["threshold"]
        sae.load_state_dict(weights)
        sae.save_model(tmp_path / "sae")
        matryoshka = convert(tmp_path / "sae", tmp_path / "out", widths=WIDTHS[:-1])
        expected = nested_outputs(random_weights(threshold=0.0), data())
        assert_converted(tmp_path / "out", matryoshka, expected)

    @pytest.mark.parametrize("where", ["cfg.json", "runner_cfg.json", "widths"])
    def test_widths_from_elsewhere(self, tmp_path, where):
        folder, given = tmp_path / "sae", None
        trained_by_saelens().save_inference_model(folder)
        edit(folder / "cfg.json", "metadata", training_architecture_details=...)
        with pytest.raises(ValueError, match="holds no matryoshka_widths"):
            convert(folder, tmp_path / "out")
        if where == "cfg.json":
            edit(folder / where, matryoshka_widths=WIDTHS)
        elif where == "runner_cfg.json":
            (folder / where).write_text(json.dumps({"sae": {"matryoshka_widths": WIDTHS}}))
        else:
            given = WIDTHS[:-1]
        assert convert(folder, tmp_path / "out", widths=given).widths == tuple(WIDTHS)
        assert MatryoshkaSAE.load_from_disk(tmp_path / "out").widths == tuple(WIDTHS)

    def test_widths_that_are_named_already(self, tmp_path):
        trained_by_saelens().save_inference_model(tmp_path / "sae")
        with pytest.raises(ValueError, match=r"widths=\[4\] has no effect.*\[8, 32, 64\]"):
            convert(tmp_path / "sae", tmp_path / "out", widths=[4])

    @pytest.mark.parametrize("mode", FOLDED)
    @pytest.mark.parametrize("file", ["missing", "empty"])
    def test_statistics_that_nobody_has(self, tmp_path, mode, file):
        trained_by_saelens(normalize_activations=mode).save_model(tmp_path / "checkpoint")
        if file == "empty":
            ActivationScaler().save(str(tmp_path / "checkpoint" / "activation_scaler.json"))
        with pytest.raises(ValueError, match=f"{mode}.*nor in activation_scaler.json"):
            convert(tmp_path / "checkpoint", tmp_path / "out")

    def test_an_unknown_architecture(self, tmp_path):
        trained_by_saelens().save_inference_model(tmp_path / "sae")
        edit(tmp_path / "sae" / "cfg.json", architecture="crosscoder")
        with pytest.raises(ValueError, match="architecture='crosscoder'.*known are .*jumprelu"):
            convert(tmp_path / "sae", tmp_path / "out")

    def test_an_architecture_that_has_no_levels(self, tmp_path):
        GatedSAE(GatedSAEConfig(d_in=D_IN, d_sae=D_SAE)).save_model(tmp_path / "sae")
        with pytest.raises(ValueError, match="is a gated SAE; levels can be cut of jumprelu"):
            convert(tmp_path / "sae", tmp_path / "out", widths=WIDTHS)

    @pytest.mark.parametrize("damage", ["another width", "cut off"])
    def test_weights_that_do_not_fit(self, tmp_path, damage):
        folder = tmp_path / "sae"
        trained_by_saelens().save_inference_model(folder)
        if damage == "another width":
            edit(folder / "cfg.json", d_sae=32)
        else:
            (folder / "sae_weights.safetensors").write_bytes(b"\0" * 100)
        with pytest.raises(ValueError, match="is damaged"):
            convert(folder, tmp_path / "out")

    def test_a_topk_sae(self, tmp_path):
        metadata = SAEMetadata(training_architecture_details={"matryoshka_widths": WIDTHS})
        sae = TopKSAE(TopKSAEConfig(d_in=D_IN, d_sae=D_SAE, k=K, metadata=metadata))
        sae.W_dec.data /= sae.W_dec.norm(dim=-1, keepdim=True)
        sae.save_model(tmp_path / "unit")
        converted = convert(tmp_path / "unit", tmp_path / "out")
        torch.testing.assert_close(converted.sae(data()), sae(data()))
        sae.W_dec.data *= 2
        sae.save_model(tmp_path / "other")
        with pytest.raises(ValueError, match="norms from 2 to 2.*as_jumprelu=True"):
            convert(tmp_path / "other", tmp_path / "other_out")


# ---- files that are no checkpoints, or dangerous ones


class Payload:
    """Unpickling it creates a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


class TestPickles:
    @pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "inside"])
    def test_code_is_not_run(self, tmp_path, by_hand, form):
        touched, file = tmp_path / "touched", by_hand / "ae.pt"
        if form == "pickle":
            file.write_bytes(pickle.dumps(Payload(touched)))
        elif form == "inside":
            torch.save(torch.load(file) | {"k": Payload(touched)}, file)
        else:
            torch.save(Payload(touched), file, _use_new_zipfile_serialization=form == "zip")
        with pytest.raises(ValueError, match=r"ae\.pt was not read.*torch\.save\(sae\.state_dict"):
            convert(by_hand, tmp_path / "out")
        assert not touched.exists()
        assert not (tmp_path / "out").exists()
        if form != "pickle":
            torch.load(file, weights_only=False)
            assert touched.exists(), "the payload is no danger: this test tests nothing"

    def test_a_damaged_file(self, tmp_path, by_hand):
        whole = (by_hand / "ae.pt").read_bytes()
        (by_hand / "ae.pt").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="is damaged, or holds more than tensors"):
            convert(by_hand, tmp_path / "out")

    def test_no_state_dict(self, tmp_path, by_hand):
        torch.save({"ae": torch.load(by_hand / "ae.pt")}, by_hand / "ae.pt")
        with pytest.raises(ValueError, match="holds no state dict"):
            convert(by_hand, tmp_path / "out")

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    @pytest.mark.parametrize("name", ["W_enc", "threshold"])
    def test_numbers_that_are_not_finite(self, tmp_path, by_hand, name, number):
        weights = torch.load(by_hand / "ae.pt")
        weights[name].view(-1)[0] = number
        torch.save(weights, by_hand / "ae.pt")
        with pytest.raises(ValueError, match=f"not finite in {name}"):
            convert(by_hand, tmp_path / "out")
        assert not (tmp_path / "out").exists()


class TestPlaces:
    def test_a_folder_that_is_not_empty(self, tmp_path, by_hand):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("kept")
        with pytest.raises(FileExistsError, match="is not empty"):
            convert(by_hand, tmp_path / "out")
        assert contents(tmp_path / "out") == {"mine": b"kept"}
        with pytest.raises(FileExistsError, match="is not empty"):
            convert(by_hand, tmp_path / "out" / "mine")

    def test_a_file_that_appears_meanwhile(self, tmp_path, by_hand, monkeypatch):
        from sae_lens_matryoshka.convert import convert as conversion

        read = conversion._read

        def slow(*args: Any) -> Any:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "cfg.json").write_text("mine")
            return read(*args)

        monkeypatch.setattr(conversion, "_read", slow)
        with pytest.raises(FileExistsError, match="is not empty"):
            convert(by_hand, tmp_path / "out")
        assert contents(tmp_path / "out") == {"cfg.json": b"mine"}

    def test_an_empty_folder(self, tmp_path, by_hand):
        (tmp_path / "out").mkdir()
        convert(str(by_hand), str(tmp_path / "out"))
        assert {*contents(tmp_path / "out")} == {"cfg.json", "sae_weights.safetensors"}

    def test_the_working_directory(self, tmp_path, by_hand, monkeypatch):
        (tmp_path / "out").mkdir()
        monkeypatch.chdir(tmp_path / "out")
        convert(by_hand, ".")
        assert {*contents(tmp_path / "out")} == {"cfg.json", "sae_weights.safetensors"}

    def test_a_subfolder(self, tmp_path, by_hand):
        assert convert(tmp_path, tmp_path / "out", subfolder=by_hand.name).widths == tuple(WIDTHS)

    def test_a_file(self, tmp_path, by_hand):
        with pytest.raises(ValueError, match="is a file. Give the folder"):
            convert(by_hand / "ae.pt", tmp_path / "out")

    def test_no_folder_and_no_repo(self, tmp_path):
        for given in (tmp_path / "none", "none", "a/b/c", Path("user/name")):
            with pytest.raises(FileNotFoundError, match="no folder, nor a Hub repo"):
                convert(given, tmp_path / "out")

    def test_no_checkpoint(self, tmp_path):
        (tmp_path / "ae_1000.pt").write_bytes(b"")
        with pytest.raises(
            FileNotFoundError, match=r"none of ae\.pt with config\.json, sae\.pt .*subfolder="
        ):
            convert(tmp_path, tmp_path / "out")

    def test_half_a_checkpoint(self, tmp_path, by_hand):
        (by_hand / "config.json").unlink()
        with pytest.raises(FileNotFoundError, match=r"holds ae\.pt but no config\.json"):
            convert(by_hand, tmp_path / "out")

    def test_two_checkpoints(self, tmp_path, by_hand, authors):
        shutil.copy(authors / "sae.pt", by_hand)
        with pytest.raises(ValueError, match=r"of several libraries: ae\.pt, sae\.pt"):
            convert(by_hand, tmp_path / "out")

    @pytest.mark.parametrize(
        ("text", "message"), [("{", "is damaged"), ("[]", "JSON object, not list")]
    )
    def test_a_config_that_is_none(self, tmp_path, by_hand, text, message):
        (by_hand / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            convert(by_hand, tmp_path / "out")

    @pytest.mark.parametrize("subfolder", [None, "layer_3/trainer_0"])
    def test_a_repo_on_the_hub(self, tmp_path, by_hand, monkeypatch, subfolder):
        snapshot, calls = tmp_path / "snapshot", []
        shutil.copytree(by_hand, snapshot / (subfolder or ""))

        def snapshot_download(repo_id: str, **options: Any) -> str:
            calls.append((repo_id, options))
            return str(snapshot)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
        convert("user/name", tmp_path / "out", subfolder=subfolder, revision="v1")
        ((repo_id, options),) = calls
        assert (repo_id, options["revision"]) == ("user/name", "v1")
        prefix = f"{subfolder}/" if subfolder else ""
        assert {f"{prefix}ae.pt", f"{prefix}config.json"} < {*options["allow_patterns"]}

    def test_a_repo_that_is_not_there(self, tmp_path):
        with pytest.raises(NotFetchedError, match="user/none at revision v1, .* a local folder"):
            convert("user/none", tmp_path / "out", revision="v1")


class TestArguments:
    def test_names_may_be_changed(self, tmp_path, authors):
        names = {"hook_name": "blocks.9.hook_resid_pre", "model_name": "google/gemma-2-2b"}
        metadata = convert(authors, tmp_path / "out", **names).sae.cfg.metadata
        assert (metadata.hook_name, metadata.model_name) == (*names.values(),)

    def test_what_the_source_does_not_say_is_filled_in(self, tmp_path, by_hand):
        metadata = convert(by_hand, tmp_path / "out", dataset_path="a/b").sae.cfg.metadata
        assert metadata.dataset_path == "a/b"

    @pytest.mark.parametrize(
        ("given", "said"), [({"context_size": 64}, "1024"), ({"dataset_path": "a/b"}, "Skylion007")]
    )
    def test_contradictions(self, tmp_path, authors, given, said):
        with pytest.raises(ValueError, match=f"{next(iter(given))}=.* contradicts .*{said}"):
            convert(authors, tmp_path / "out", **given)

    def test_what_the_source_says_may_be_said_again(self, tmp_path, authors):
        convert(authors, tmp_path / "out", context_size=1024)

    def test_widths_beside_groups(self, tmp_path, by_hand):
        widths = [4]
        with pytest.raises(ValueError, match=r"widths=\[4\] has no effect"):
            convert(by_hand, tmp_path / "out", widths=widths)

    def test_a_revision_of_a_folder(self, tmp_path, by_hand):
        with pytest.raises(ValueError, match="revision='v1' has no effect on the folder"):
            convert(by_hand, tmp_path / "out", revision="v1")
