"""SAELens's own trainers drive the SAE with nothing patched."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import wandb
from runner_helpers import (
    TinyModel,
    multi_sae_runner,
    needs_compiler,
    options,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import (
    SAE,
    LanguageModelSAETrainingRunner,
    TrainingSAE,
)
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.synthetic import (
    SyntheticModelConfig,
    SyntheticSAERunner,
    SyntheticSAERunnerConfig,
)
from sae_lens.training.multi_sae_trainer import MultiSAETrainer
from sae_lens.training.sae_trainer import SAETrainer
from wandb_file import logged_history

from sae_lens_matryoshka import (
    LanguageModelSAERunnerConfig,
    MatryoshkaSAE,
    MatryoshkaTrainingSAE,
    MatryoshkaTrainingSAEConfig,
    engine,
)

D_IN, D_SAE, BATCH = 16, 48, 256


def activations(batch: int = BATCH, seed: int = 1) -> Iterator[torch.Tensor]:
    """Sparse sums of fixed directions and a little noise: something that an SAE can learn."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.nn.functional.normalize(torch.randn(40, D_IN, generator=generator), dim=-1)
    frequencies = torch.linspace(0.2, 0.02, 40)
    generator.manual_seed(seed)
    while True:
        on = torch.rand(batch, 40, generator=generator) < frequencies
        size = 1 + 0.3 * torch.randn(batch, 40, generator=generator).abs()
        noise = 0.05 * torch.randn(batch, D_IN, generator=generator)
        yield (on * size) @ directions + noise


def trainer_config(steps: int, **options) -> SAETrainerConfig:
    options = {"lr": 3e-3, "lr_end": 3e-4, **options}
    return SAETrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, **options
    )


def new_sae(**options) -> MatryoshkaTrainingSAE:
    torch.manual_seed(0)
    options = {"d_in": D_IN, "d_sae": D_SAE, "matryoshka_widths": [6, 18], **options}
    return MatryoshkaTrainingSAE(MatryoshkaTrainingSAEConfig(**options))


def train(sae: MatryoshkaTrainingSAE, steps: int, **options) -> SAETrainer:
    trainer = SAETrainer(trainer_config(steps, **options), sae, activations())
    trainer.fit()
    return trainer


def saved(sae: TrainingSAE, folder: Path) -> SAE:
    sae.save_inference_model(folder)
    return SAE.load_from_disk(folder)


def heldout_l0(sae: SAE) -> float:
    x = next(activations(40_000, seed=99))
    return sae.encode(x).count_nonzero().item() / len(x)


def fvu(sae: SAE) -> float:
    x = next(activations(4000, seed=99))
    return ((x - sae(x)).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()).item()


class TestThreshold:
    """What is saved fires as often as asked for, on activations it has not seen."""

    @pytest.mark.parametrize("steps", [40, 150])
    @pytest.mark.parametrize(
        "normalize",
        [
            "none",
            "expected_average_only_in",
            "layer_norm",
            "constant_norm_rescale",
            "covariance_whitening",
        ],
    )
    @pytest.mark.parametrize("rescale", [True, False])
    def test_batchtopk_within_2_percent(self, tmp_path, steps, normalize, rescale):
        sae = new_sae(k=4, normalize_activations=normalize, rescale_acts_by_decoder_norm=rescale)
        train(sae, steps, n_batches_for_norm_estimate=20)
        assert heldout_l0(saved(sae, tmp_path)) == pytest.approx(4, rel=0.02)

    def test_from_a_checkpoint_without_recent_activations(self, tmp_path):
        sae = new_sae(k=4)
        train(sae, 400, lr_decay_steps=200)
        sae.save_model(tmp_path / "checkpoint")
        loaded = TrainingSAE.load_from_disk(tmp_path / "checkpoint")
        # the running threshold stands in; it does not start at 0
        assert heldout_l0(saved(loaded, tmp_path / "saved")) == pytest.approx(4, rel=0.05)

    def test_jumprelu_with_a_target_within_5_percent(self, tmp_path):
        sae = new_sae(activation="jumprelu", target_l0=4, jumprelu_bandwidth=0.2)
        train(sae, 150)
        assert heldout_l0(saved(sae, tmp_path)) == pytest.approx(4, rel=0.05)

    @pytest.mark.slow
    def test_relu_with_a_target_within_5_percent(self, tmp_path, caplog):
        sae = new_sae(activation="relu", target_l0=4, l1_coefficient=0.5)
        train(sae, 5000, lr_decay_steps=1000)
        assert heldout_l0(saved(sae, tmp_path)) == pytest.approx(4, rel=0.05)
        assert "has not arrived" not in caplog.text

    def test_relu_says_when_its_target_is_missed(self, tmp_path, caplog):
        sae = new_sae(activation="relu", target_l0=1, l1_coefficient=1e-3)
        train(sae, 5)
        sae.save_inference_model(tmp_path)
        assert "not target_l0=1" in caplog.text
        assert "an l1_coefficient above 0.001" in caplog.text


class TestTraining:
    @pytest.mark.parametrize(
        "options",
        [
            {"k": 4},
            {"k": 4, "activation": "topk", "aux_loss": "per_level"},
            {"k": 4, "prefix_sampling": "random", "n_prefixes": 5},
            {"activation": "relu", "l1_coefficient": 0.05},
            {"activation": "jumprelu", "l0_coefficient": 0.01},
        ],
    )
    def test_learns(self, tmp_path, options):
        sae = new_sae(**options)
        start = fvu(saved(sae, tmp_path / "start")) if "k" not in options else 1.0
        train(sae, 300, dead_feature_window=20)
        assert fvu(saved(sae, tmp_path / "end")) < min(0.75, 0.9 * start)

    @pytest.mark.parametrize("normalize", ["layer_norm", "constant_norm_rescale"])
    def test_normalization_with_dead_latents(self, normalize):
        """Where SAELens's levels crash and its aux loss raises."""
        sae = new_sae(k=1, normalize_activations=normalize)
        trainer = train(sae, 20, dead_feature_window=2)
        assert trainer.dead_neurons.any()

    def test_autocast_and_bfloat16(self, tmp_path):
        sae = new_sae(k=4)
        train(sae, 100, autocast=True)
        assert heldout_l0(saved(sae, tmp_path / "autocast")) == pytest.approx(4, rel=0.02)
        low = new_sae(k=4, dtype="bfloat16")
        train(low, 30)
        assert saved(low, tmp_path / "low").W_dec.dtype == torch.bfloat16

    def test_checkpoint_and_resume(self, tmp_path):
        whole = new_sae(k=4, b_dec_init="geometric_median")
        train(whole, 40)

        stream = activations()
        first = new_sae(k=4, b_dec_init="geometric_median")
        trainer = SAETrainer(trainer_config(40), first, stream)
        for _ in range(20):
            trainer.step(next(stream))
            trainer.n_training_steps += 1
        trainer.save_checkpoint("middle", base_path=tmp_path)

        second = new_sae(k=4, b_dec_init="geometric_median")
        resumed = SAETrainer(trainer_config(40), second, stream)
        resumed.load_trainer_state(tmp_path / "middle")
        second.load_weights_from_checkpoint(tmp_path / "middle")
        resumed.fit()
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, second.state_dict()[name]), name

    def test_a_checkpoint_of_another_shape(self, tmp_path):
        new_sae(k=4).save_model(tmp_path)
        other = new_sae(k=4, d_sae=64)
        with pytest.raises(ValueError, match=r"\(48, 16\).*the configuration says \(64, 16\)"):
            other.load_weights_from_checkpoint(tmp_path)

    @pytest.mark.slow
    @needs_compiler
    @pytest.mark.parametrize("path", ["dense", "sparse"])
    def test_compiled(self, path):
        plain, compiled = new_sae(k=4), new_sae(k=4)
        compiled.training_forward_pass = torch.compile(compiled.training_forward_pass)
        with engine.using(path):
            train(plain, 5)
            train(compiled, 5)
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(compiled.state_dict()[name], tensor, rtol=1e-4, atol=1e-5)


class TestSparseAndDense:
    """The engine's two paths train the same SAE."""

    @staticmethod
    def losses(path: engine.Path, steps: int, autocast: bool = False, **options):
        sae, curve = new_sae(d_sae=256, matryoshka_widths=[8, 32], **options), []
        trainer = SAETrainer(trainer_config(steps, autocast=autocast), sae, activations())
        step = trainer._train_step

        def watched(*args, **kwargs):
            output = step(*args, **kwargs)
            curve.append(output.loss.item())
            return output

        trainer._train_step = watched
        with engine.using(path):
            trainer.fit()
        return sae, torch.tensor(curve)

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "options",
        [
            {"k": 4},
            {"k": 4, "activation": "topk", "prefix_sampling": "random", "n_prefixes": 4},
            {"activation": "jumprelu", "target_l0": 4},
            {"activation": "relu", "target_l0": 4},
            {"k": 4, "refinement_step": 0.3},
        ],
        ids=["batchtopk", "topk, random prefixes", "jumprelu", "relu", "refined"],
    )
    def test_a_thousand_steps(self, options):
        (dense, dense_curve), (sparse, sparse_curve) = (
            self.losses(path, 1000, **options) for path in ("dense", "sparse")
        )
        assert len(dense_curve) == 1000
        assert dense_curve[-100:].mean() < 0.8 * dense_curve[:20].mean()
        # single steps part where rounding decides a near-tie; the curve is that of 20 steps' means
        smooth = [curve.view(-1, 20).mean(dim=1) for curve in (sparse_curve, dense_curve)]
        torch.testing.assert_close(*smooth, rtol=1e-3, atol=0)
        x = next(activations(4096, seed=99))
        recons = [MatryoshkaSAE.from_sae(sae) for sae in (sparse, dense)]
        if options.get("activation") == "topk":
            outputs = [sae.sae(x) for sae in recons]
        else:
            outputs = [sae.reconstructions(x) for sae in recons]
        errors = [(out - x).pow(2).sum(dim=-1).mean(dim=-1) for out in outputs]
        torch.testing.assert_close(*errors, rtol=1e-2, atol=0)

    @pytest.mark.parametrize(
        "options",
        [{"activation": "batchtopk"}, {"activation": "topk"}, {"refinement_step": 0.3}],
        ids=str,
    )
    def test_under_autocast(self, options):
        curves = [
            self.losses(path, 20, autocast, k=4, **options)[1]
            for path in ("dense", "sparse")
            for autocast in (True, False)
        ]
        for curve in curves[:3]:
            torch.testing.assert_close(curve, curves[3], rtol=2e-2, atol=0)
        assert not torch.equal(curves[2], curves[3])  # autocast reaches the sparse path

    def test_error_term_removes_the_hook_points(self):
        """SAELens puts nn.Identity in their place while it looks for its own error."""
        torch.manual_seed(0)
        cfg = MatryoshkaTrainingSAEConfig(d_in=D_IN, d_sae=D_SAE, k=4)
        sae, x = MatryoshkaTrainingSAE(cfg, use_error_term=True), next(activations(50))
        for path in ("dense", "sparse"):
            with engine.using(path):
                torch.testing.assert_close(sae(x), x)

    def test_a_hook_of_torch_is_served_too(self):
        sae, seen = new_sae(k=4), []
        sae.hook_sae_acts_pre.register_forward_hook(lambda *args: seen.append(args[2].shape))
        with engine.using("sparse"):
            train(sae, 2)
        assert seen == [(BATCH, D_SAE)] * 2

    def test_hooks_get_the_dense_tensors(self):
        sae, seen = new_sae(k=4), []
        sae.hook_sae_acts_post.add_hook(lambda acts, hook: seen.append((hook.name, acts.shape)))
        with engine.using("sparse"):
            train(sae, 2)
        assert [shape for _, shape in seen] == [(BATCH, D_SAE)] * 2

    def test_encode_and_reconstructions_at_inference(self, tmp_path):
        x = next(activations(50, seed=3))
        sae = new_sae(k=4)
        train(sae, 30)
        opened = MatryoshkaSAE.from_sae(sae)
        results = {}
        for path in ("dense", "sparse"):
            with engine.using(path), torch.no_grad():
                assert opened.reconstructions(x[None]).shape == (3, 1, 50, D_IN)
                results[path] = (
                    sae.encode(x),
                    sae.encode(x.view(5, 10, -1)),
                    opened.reconstructions(x),
                )
        for sparse, dense in zip(results["sparse"], results["dense"]):
            torch.testing.assert_close(sparse, dense)


def test_several_k_in_one_pass(tmp_path):
    """The paper's L0 sweep: MultiSAETrainer on one stream of activations."""
    ks = (2, 4, 8)
    stream = ({"hook": x} for x in activations())
    trainer = MultiSAETrainer(
        trainer_config(60),
        {f"k{k}": new_sae(k=k) for k in ks},
        dict.fromkeys((f"k{k}" for k in ks), "hook"),
        stream,
    )
    saes = trainer.fit()
    for k in ks:
        stock = saved(saes[f"k{k}"], tmp_path / str(k))
        assert heldout_l0(stock) == pytest.approx(k, rel=0.02)


def test_multi_sae_runner(tmp_path):
    saes = {
        f"k{k}": MatryoshkaTrainingSAEConfig(d_in=D_IN, d_sae=32, k=k, matryoshka_widths=[8])
        for k in (1, 3)
    }
    multi_sae_runner(tmp_path, saes, steps=20).run()
    for k in (1, 3):
        opened = MatryoshkaSAE.load_from_disk(tmp_path / f"k{k}")
        assert opened.widths == (8, 32)
        assert opened.sae.cfg.metadata.training_architecture_details["k"] == k


def test_stock_runner_on_attention_heads(tmp_path):
    """hook_z: the store flattens the heads, the saved SAE takes them as they come."""
    hook = "blocks.0.attn.hook_z"
    cfg = LanguageModelSAERunnerConfig(
        **options(tmp_path, hook_name=hook, reshape_activations="hook_z", checkpoint_path=None)
    )
    model = TinyModel()
    LanguageModelSAETrainingRunner(
        cfg, override_model=model, override_dataset=token_dataset()
    ).run()
    level = MatryoshkaSAE.load_from_disk(tmp_path / "output").level(0)
    _, cache = model.run_with_cache(torch.tensor([[1, 2, 3]]))
    assert cache[hook].shape == (1, 3, 2, 8)  # heads of their own dimension
    assert level(cache[hook]).shape == (1, 3, 2, 8)


def test_synthetic_runner(tmp_path):
    """It rewrites d_in after the configuration was made: k_aux follows, since it is resolved late."""
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=32, hidden_dim=D_IN),
        sae=MatryoshkaTrainingSAEConfig(d_in=4, d_sae=D_SAE, k=2),
        training_samples=30 * BATCH,
        batch_size=BATCH,
        dead_feature_window=2,
        eval_samples=500,
        output_path=str(tmp_path),
        checkpoint_path=None,
    )
    cfg.logger.log_to_wandb = False
    result = SyntheticSAERunner(cfg).run()
    assert result.sae.W_dec.shape == (D_SAE, D_IN)
    assert result.final_eval is not None
    assert MatryoshkaSAE.load_from_disk(tmp_path).widths == (1, 4, 10, 22, 48)


def test_loads_where_this_package_is_not_installed(tmp_path):
    """A process that cannot import us gets the same output from stock SAELens."""
    sae = new_sae(k=4)
    train(sae, 20)
    stock = saved(sae, tmp_path)
    x = next(activations(64, seed=5))
    torch.save(x, tmp_path / "x.pt")
    code = f"""
import sys
sys.modules["sae_lens_matryoshka"] = None  # any import of it fails
import torch
from sae_lens import SAE
sae = SAE.load_from_disk({str(tmp_path)!r})
torch.save(sae(torch.load({str(tmp_path / "x.pt")!r})).detach(), {str(tmp_path / "y.pt")!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "y.pt"), stock(x), rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "cfg.json").read_text())["architecture"] == "jumprelu"


def test_wandb_offline_run_holds_the_levels(tmp_path, monkeypatch):
    """The real client, offline; read back from the file that it writes."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(project="levels", dir=str(tmp_path))
    logger = LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=100)
    train(new_sae(k=4), 4, logger=logger)
    wandb.finish()
    wandb.teardown()  # its service writes the last records after finish() has returned

    logged = logged_history(Path(run.dir).parent)
    for level, width in enumerate([6, 18, 48]):
        for metric in ("fvu", "l0", "active", "dead"):
            assert f"metrics/level_{level}_width_{width}/{metric}" in logged
    assert logged["metrics/level_2_width_48/l0"] == pytest.approx(4, abs=0.1)
    assert logged["metrics/topk_threshold"] > 0
