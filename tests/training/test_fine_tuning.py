"""Training that starts from a saved SAE: what the configuration says, or an error that names why not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runner_helpers import (
    D_IN,
    D_SAE,
    TinyModel,
    assert_same,
    interrupted,
    make_runner,
    options,
    results,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import (
    SAE,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TrainingSAE,
)

from sae_lens_matryoshka import (
    LanguageModelSAERunnerConfig,
    MatryoshkaSAE,
    MatryoshkaSAETrainingRunner,
    MatryoshkaTrainingSAE,
)
from sae_lens_matryoshka.loading.saved_folder import open_folder
from sae_lens_matryoshka.saes.inference_sae import inference_form

CONFIGS = {"jumprelu": JumpReLUSAEConfig, "standard": StandardSAEConfig, "topk": TopKSAEConfig}
CLASSES = {"jumprelu": JumpReLUSAE, "standard": StandardSAE, "topk": TopKSAE}


def saved(folder: Path, architecture: str = "jumprelu", **fields: Any) -> SAE[Any]:
    """An inference SAE on disk, of no particular norms, as other libraries have them."""
    if architecture == "topk":
        fields = {"k": 3} | fields
    sae = CLASSES[architecture](CONFIGS[architecture](d_in=D_IN, d_sae=D_SAE, **fields))
    generator = torch.Generator().manual_seed(4)
    for name, parameter in sae.named_parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
        if name == "threshold":
            parameter.data = parameter.data.abs()
    sae.save_model(folder / "saved")
    return sae


def batch() -> torch.Tensor:
    return torch.randn(40, D_IN, generator=torch.Generator().manual_seed(9))


def runner(folder: Path, **changes: Any) -> MatryoshkaSAETrainingRunner:
    given = {"from_pretrained_path": str(folder / "saved"), "output_path": str(folder / "out")}
    changes = given | changes
    absent = [name for name, value in changes.items() if value is ...]
    all_options = options(folder) | changes
    for name in absent:
        del all_options[name]
    return MatryoshkaSAETrainingRunner(
        LanguageModelSAERunnerConfig(**all_options),
        override_model=TinyModel(),
        override_dataset=token_dataset(),
    )


STOCK = {"matryoshka_widths": ..., "k": ...}


@pytest.mark.parametrize(
    ("architecture", "fields", "changes"),
    [
        ("jumprelu", {}, {"activation": "jumprelu", "k": ...}),
        ("jumprelu", {"apply_b_dec_to_input": False}, {"activation": "jumprelu", "k": ...}),
        ("jumprelu", {}, {"apply_b_dec_to_input": False, "activation": "jumprelu", "k": ...}),
        ("jumprelu", {"normalize_activations": "layer_norm"}, {"activation": "jumprelu", "k": ...}),
        ("jumprelu", {}, {"architecture": "jumprelu", **STOCK}),
        ("standard", {}, {"activation": "relu", "k": ...}),
        ("standard", {}, {"architecture": "standard", **STOCK}),
        ("topk", {"rescale_acts_by_decoder_norm": True}, {"activation": "topk"}),
        ("topk", {}, {"activation": "topk", "rescale_acts_by_decoder_norm": False}),
        ("topk", {"rescale_acts_by_decoder_norm": True}, {"architecture": "topk", **STOCK, "k": 3}),
    ],
    ids=str,
)
def test_the_first_step_computes_what_the_saved_sae_does(
    tmp_path: Path, architecture: str, fields: dict[str, Any], changes: dict[str, Any]
):
    if "normalize_activations" in fields:
        changes = changes | {"normalize_activations": fields["normalize_activations"]}
    before = saved(tmp_path, architecture, **fields)
    sae = runner(tmp_path, **changes).sae
    with torch.no_grad():
        torch.testing.assert_close(sae(batch()), before(batch()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["matryoshka", "batchtopk", "matryoshka_batchtopk"])
def test_a_batch_top_k_starts_with_the_weights_and_the_threshold(tmp_path: Path, architecture: str):
    before = saved(tmp_path)
    before.threshold.data.fill_(0.7)
    before.fold_W_dec_norm()
    before.threshold.data.fill_(0.7)  # one for all, as a batch top-k is saved with
    before.save_model(tmp_path / "saved")
    changes = {"matryoshka_widths": ...} if architecture == "batchtopk" else {}
    sae = runner(tmp_path, architecture=architecture, **changes).sae
    x = batch()
    hidden_pre = sae.encode_with_hidden_pre(x)[1].to_dense()
    expected = before.process_sae_in(x) @ before.W_enc + before.b_enc
    torch.testing.assert_close(hidden_pre, expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(inference_form(sae)(x), before(x), rtol=1e-4, atol=1e-4)


def test_scaled_activations_are_met_at_their_scale(tmp_path: Path):
    before = saved(tmp_path)
    trained = runner(
        tmp_path,
        activation="jumprelu",
        k=...,
        normalize_activations="expected_average_only_in",
        lr=1e-30,
        lr_scheduler_name="constant",
    )
    scales: list[float] = []
    forward = trained.sae.training_forward_pass

    def first_step(step_input: Any) -> Any:
        if not scales:
            scales.append(step_input.sae_in.norm(dim=-1).mean().item())
        return forward(step_input)

    trained.sae.training_forward_pass = first_step  # type: ignore[method-assign]
    trained.run()
    assert scales[0] == pytest.approx(D_IN**0.5, rel=0.1)
    after = SAE.load_from_disk(tmp_path / "out")
    assert after.cfg.normalize_activations == "none"
    torch.testing.assert_close(after(batch()), before(batch()), rtol=1e-3, atol=1e-3)


def test_training_goes_on_as_configured_and_says_what_is_new(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_runner(tmp_path / "first").run()
    before = MatryoshkaSAE.load_from_disk(tmp_path / "first" / "output")
    caplog.clear()
    changes = {
        "k": 5,
        "matryoshka_widths": [8, 16],
        "latent_order": "frequency",
        "hook_name": "blocks.0.hook_resid_mid",
    }
    again = runner(tmp_path, from_pretrained_path=str(tmp_path / "first" / "output"), **changes)
    torch.testing.assert_close(again.sae.W_dec.data, before.sae.W_dec.data)
    for part in ("k=5 instead of 3", "[8, 16, 32]", "latent_order='frequency'", "resid_mid"):
        assert part in caplog.text
    again.run()
    after = MatryoshkaSAE.load_from_disk(tmp_path / "out")
    assert after.widths == (8, 16, 32)
    assert after.sae.cfg.metadata.hook_name == "blocks.0.hook_resid_mid"
    assert not torch.equal(after.sae.W_dec, before.sae.W_dec)
    written = json.loads((tmp_path / "out" / "runner_cfg.json").read_text())
    assert written["sae"]["architecture"] == "matryoshka"
    assert (written["sae"]["k"], written["sae"]["matryoshka_widths"]) == (5, [8, 16, 32])
    assert written["from_pretrained_path"] == str(tmp_path / "first" / "output")


@pytest.mark.parametrize("order", ["fixed", "frequency"])
@pytest.mark.parametrize("normalization", ["none", "expected_average_only_in"])
def test_a_checkpoint_gives_what_would_be_saved_of_it(
    tmp_path: Path, order: str, normalization: str
):
    first = make_runner(
        tmp_path, latent_order=order, normalize_activations=normalization, n_checkpoints=1
    )
    checkpoint = interrupted(first, step=20)
    expected = open_folder(Path(checkpoint))
    again = runner(tmp_path, from_pretrained_path=checkpoint, k=5)
    assert isinstance(again.sae, MatryoshkaTrainingSAE)
    assert (again.sae.cfg.k, again.sae.cfg.latent_order) == (5, "fixed")
    with torch.no_grad():
        torch.testing.assert_close(inference_form(again.sae)(batch()), expected(batch()))
    again.run()


def test_a_training_sae_of_saelens(tmp_path: Path):
    first = runner(tmp_path, from_pretrained_path=None, architecture="topk", **STOCK | {"k": 3})
    first.sae.save_model(tmp_path / "saved")
    again = runner(tmp_path, activation="topk")
    with torch.no_grad():
        torch.testing.assert_close(again.sae(batch()), first.sae(batch()))


def test_other_activations_are_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    before = saved(tmp_path, "standard")
    sae = runner(tmp_path).sae
    assert "'batchtopk' activations instead of 'standard'" in caplog.text
    expected = before.W_dec / before.W_dec.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(sae.W_dec, expected)


def test_an_interrupted_fine_tuning_is_resumed(tmp_path: Path):
    saved(tmp_path)
    scaled = {"normalize_activations": "expected_average_only_in"}
    runner(tmp_path, output_path=str(tmp_path / "whole" / "output"), **scaled).run()
    checkpoint = interrupted(runner(tmp_path, **scaled), step=9)
    for file in (tmp_path / "saved").iterdir():  # not needed any more
        file.unlink()
    output = str(tmp_path / "parts" / "output")
    runner(tmp_path, resume_from_checkpoint=checkpoint, output_path=output, **scaled).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


# ---- what cannot be had


@pytest.mark.parametrize(
    ("fields", "changes", "says"),
    [
        ({}, {"d_sae": 40}, ["d_sae=40 instead of 32"]),
        ({}, {"d_sae": 40, "d_in": 8}, ["d_sae=40 instead of 32", "d_in=8 instead of 16"]),
        (
            {"normalize_activations": "layer_norm"},
            {},
            ["normalize_activations='none' instead of 'layer_norm'"],
        ),
        ({}, {"normalize_activations": "covariance_whitening"}, ["covariance_whitening"]),
        ({}, {"architecture": "gated", **STOCK}, ["'gated'", "'jumprelu'"]),
        ({}, {"b_dec_init": "geometric_median"}, ["b_dec_init='geometric_median'"]),
        (
            {"architecture": "topk"},
            {"activation": "topk"},
            ["rescale_acts_by_decoder_norm=True instead of False"],
        ),
    ],
    ids=str,
)
def test_differences_that_cannot_be_had_are_named(
    tmp_path: Path, fields: dict[str, Any], changes: dict[str, Any], says: list[str]
):
    saved(tmp_path, **fields)
    with pytest.raises(ValueError) as caught:
        runner(tmp_path, model_name="no/such-model", **changes)
    for part in says:
        assert part in str(caught.value)


def test_where_there_is_no_sae(tmp_path: Path):
    saved(tmp_path)
    with pytest.raises(FileNotFoundError, match="from_pretrained_path: .*SAEs in .*saved"):
        runner(tmp_path, from_pretrained_path=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="from_pretrained_path: .*nowhere"):
        runner(tmp_path, from_pretrained_path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str):
    saved(tmp_path)
    file = tmp_path / "saved" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        runner(tmp_path)


# ---- an SAE given as an object


def test_an_sae_given_as_an_object_is_the_configured_one(tmp_path: Path):
    def given(folder: Path, sae: TrainingSAE[Any], **changes: Any) -> MatryoshkaSAETrainingRunner:
        return MatryoshkaSAETrainingRunner(
            LanguageModelSAERunnerConfig(**options(folder, **changes)),
            override_model=TinyModel(),
            override_dataset=token_dataset(),
            override_sae=sae,
        )

    sae = make_runner(tmp_path / "first").run()
    before = sae.W_dec.data.clone()
    trained = given(tmp_path / "second", sae).run()
    assert trained is sae
    assert not torch.equal(before, sae.W_dec)
    with pytest.raises(ValueError, match=r"k=3 instead of 5.*sae=override_sae.cfg"):
        given(tmp_path, sae, k=5)
    with pytest.raises(ValueError, match="architecture='matryoshka' instead of 'matryoshka_batch"):
        given(tmp_path, sae, architecture="matryoshka_batchtopk")
    with pytest.raises(TypeError, match="JumpReLUSAE, not a training SAE.*from_pretrained_path"):
        given(tmp_path, SAE.load_from_disk(tmp_path / "first" / "output"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="from_pretrained_path='x' has no effect"):
        given(tmp_path, sae, from_pretrained_path="x")
