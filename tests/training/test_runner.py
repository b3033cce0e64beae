import copy
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sae_lens
import torch
import wandb
from hypothesis import given, settings
from hypothesis import strategies as st
from runner_helpers import (
    D_IN,
    TinyModel,
    assert_same,
    call_at_step,
    interrupted,
    long_run,
    make_runner,
    needs_compiler,
    options,
    results,
    save_cached_activations,
    signal_at_step,
    text_dataset,
    tidy_process,  # noqa: F401  (a fixture of every test here)
    token_dataset,
)
from sae_lens import (
    SAE,
    ActivationsStore,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    SAETrainer,
    StandardTrainingSAEConfig,
    TopKTrainingSAEConfig,
)
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY
from sae_lens.training.mixing_buffer import mixing_buffer
from torch.optim.optimizer import register_optimizer_step_pre_hook

import sae_lens_matryoshka as slm
from sae_lens_matryoshka import LanguageModelSAERunnerConfig, MatryoshkaSAETrainingRunner
from sae_lens_matryoshka.loading.model_identity import KEY, model_identity
from sae_lens_matryoshka.training.activations.store import MixingBuffer
from sae_lens_matryoshka.training.runner import TrainingInterrupted

StockConfig = sae_lens.LanguageModelSAERunnerConfig


# ---- configuration


class TestConfig:
    def test_flat_fields_build_a_matryoshka_sae(self):
        cfg = LanguageModelSAERunnerConfig(
            d_in=8,
            d_sae=64,
            k=5,
            matryoshka_widths=[16],
            hook_name="blocks.3.hook_resid_pre",
            lr=1e-3,
        )
        assert isinstance(cfg.sae, slm.MatryoshkaTrainingSAEConfig)
        assert (cfg.sae.d_in, cfg.sae.d_sae, cfg.sae.k) == (8, 64, 5)
        assert cfg.sae.matryoshka_widths == [16, 64]
        assert (cfg.hook_name, cfg.lr) == ("blocks.3.hook_resid_pre", 1e-3)

    def test_device_and_dtype_go_to_both(self):
        cfg = LanguageModelSAERunnerConfig(d_in=8, d_sae=64, k=3, device="meta", dtype="bfloat16")
        assert (cfg.device, cfg.dtype) == ("meta", "bfloat16")
        assert (cfg.sae.device, cfg.sae.dtype) == ("meta", "bfloat16")

    def test_a_given_sae_is_copied_and_takes_the_flat_device_and_dtype(self):
        sae = slm.MatryoshkaTrainingSAEConfig(d_in=8, d_sae=64, k=3, dtype="bfloat16")
        cfg = LanguageModelSAERunnerConfig(sae=sae, device="meta")
        assert (cfg.sae.device, cfg.device, cfg.sae.dtype) == ("meta", "meta", "bfloat16")
        assert sae.device == "cpu"
        same = LanguageModelSAERunnerConfig(sae, architecture="matryoshka", dtype="float32")
        assert (same.sae.dtype, same.sae.k) == ("float32", 3)
        assert sae.dtype == "bfloat16"

    @pytest.mark.parametrize("architecture", sorted(SAE_TRAINING_CLASS_REGISTRY))
    def test_every_registered_architecture(self, architecture: str):
        given = {"k": 2} if architecture == "matryoshka" else {}
        if architecture == "matryoshka_batchtopk":
            given = {"matryoshka_widths": [4, 8]}
        cfg = LanguageModelSAERunnerConfig(architecture=architecture, d_in=4, d_sae=8, **given)
        assert type(cfg.sae) is SAE_TRAINING_CLASS_REGISTRY[architecture][1]

    def test_options_of_another_architecture(self):
        cfg = LanguageModelSAERunnerConfig(
            architecture="standard", d_in=4, d_sae=8, l1_coefficient=0.25
        )
        assert cfg.sae == StandardTrainingSAEConfig(d_in=4, d_sae=8, l1_coefficient=0.25)

    def test_it_is_a_stock_config_with_two_fields_of_its_own(self):
        cfg = LanguageModelSAERunnerConfig(d_in=4, d_sae=8, k=3)
        assert isinstance(cfg, StockConfig)
        stock = [f.name for f in fields(StockConfig)]
        assert [f.name for f in fields(cfg)] == [*stock, "lr_decay_to", "max_nonfinite_fraction"]
        assert list(cfg.to_dict()) == list(StockConfig(cfg.sae).to_dict())  # SAELens reads it

    @pytest.mark.parametrize(
        ("given", "error", "says"),
        [
            ({"architecture": "matroshka"}, ValueError, ["'matroshka'", "matryoshka, ", "topk"]),
            ({"hook_nme": "x"}, TypeError, ["'hook_nme'", "'hook_name'"]),
            ({"recip": "best"}, TypeError, ["'recip'", "'recipe'"]),
            ({"lr_decay_too": 0.1}, TypeError, ["'lr_decay_too'", "'lr_decay_to'"]),
            ({"matryoshka_width": [4]}, TypeError, ["'matryoshka_width'", "'matryoshka_widths'"]),
            ({"matryoshka_inner_loss_weights": None}, TypeError, ["nearest"]),
            ({"jumprelu_sparsity_loss_mode": "step"}, TypeError, ["belongs to", "jumprelu"]),
            ({"k": 9}, ValueError, ["k=9", "d_sae (8)"]),
        ],
    )
    def test_bad_flat_options(self, given: dict[str, Any], error: type[Exception], says: list[str]):
        with pytest.raises(error) as caught:
            LanguageModelSAERunnerConfig(**{"d_in": 4, "d_sae": 8} | given)
        for part in says:
            assert part in str(caught.value)

    @pytest.mark.parametrize("missing", ["d_in", "d_sae"])
    def test_missing_shape(self, missing: str):
        given = {"d_in": 4, "d_sae": 8}
        del given[missing]
        with pytest.raises(ValueError, match=f"{missing} must be given"):
            LanguageModelSAERunnerConfig(**given)
        with pytest.raises(ValueError, match="d_in and d_sae must be given"):
            LanguageModelSAERunnerConfig()

    def test_sae_together_with_its_fields(self):
        sae = slm.MatryoshkaTrainingSAEConfig(d_in=4, d_sae=8, k=2)
        with pytest.raises(ValueError, match="d_sae, k given beside sae="):
            LanguageModelSAERunnerConfig(sae=sae, k=3, d_sae=8)

    def test_sae_of_another_architecture(self):
        sae = TopKTrainingSAEConfig(d_in=4, d_sae=8, k=2)
        with pytest.raises(ValueError, match="'matryoshka' is not that of sae.*'topk'"):
            LanguageModelSAERunnerConfig(sae=sae, architecture="matryoshka")

    @pytest.mark.parametrize("sae", [sae_lens.TopKSAEConfig(d_in=4, d_sae=8, k=2), {"d_in": 4}])
    def test_sae_that_is_no_training_configuration(self, sae: Any):
        with pytest.raises(TypeError, match="must be a training configuration"):
            LanguageModelSAERunnerConfig(sae=sae)

    @pytest.mark.parametrize("through_json", [False, True])
    def test_round_trip(self, through_json: bool):
        cfg = LanguageModelSAERunnerConfig(
            d_in=8,
            d_sae=64,
            k=2.5,
            level_weight_mu=0.7,
            seqpos_slice=(1, 4),
            model_kwargs={"a": 1},
            lr=1e-3,
            verbose=False,
            logger=LoggingConfig(log_to_wandb=False, wandb_id="same"),
        )
        as_dict = cfg.to_dict()
        if through_json:
            as_dict = json.loads(json.dumps(as_dict))
        before = copy.deepcopy(as_dict)
        back = LanguageModelSAERunnerConfig.from_dict(as_dict)
        assert type(back) is LanguageModelSAERunnerConfig
        assert back == cfg
        assert as_dict == before

    def test_stock_reads_what_ours_writes_and_the_other_way_round(self):
        cfg = LanguageModelSAERunnerConfig(d_in=8, d_sae=64, k=3, verbose=False)
        stock = StockConfig.from_dict(json.loads(json.dumps(cfg.to_dict())))
        assert type(stock) is StockConfig
        assert stock.sae == cfg.sae
        assert LanguageModelSAERunnerConfig.from_dict(stock.to_dict()) == cfg

    def test_from_dict_names_an_unknown_architecture(self):
        as_dict = LanguageModelSAERunnerConfig(d_in=8, d_sae=64, k=3).to_dict()
        as_dict["sae"]["architecture"] = "nested"
        with pytest.raises(ValueError, match="'nested' is not registered.*matryoshka"):
            LanguageModelSAERunnerConfig.from_dict(as_dict)

    def test_what_is_passed_in_stays_as_it_was(self):
        given = {
            "architecture": "matryoshka_batchtopk",  # SAELens appends d_sae to the widths
            "matryoshka_widths": [4],
            "logger": LoggingConfig(log_to_wandb=False),  # SAELens sets its run name
            "model_kwargs": {"a": [1]},
        }
        before = copy.deepcopy(given)
        cfg = LanguageModelSAERunnerConfig(d_in=4, d_sae=8, **given)
        cfg.model_kwargs["a"].append(2)
        assert given == before
        assert cfg.logger.run_name is not None


# ---- a run to its end


def test_stock_runner_trains_our_config_to_the_same_numbers(tmp_path: Path):
    make_runner(tmp_path / "ours").run()
    cfg = LanguageModelSAERunnerConfig(**options(tmp_path / "stock"))
    model = TinyModel()
    torch.manual_seed(cfg.seed)  # SAELens reads the seed nowhere
    LanguageModelSAETrainingRunner(
        cfg, override_model=model, override_dataset=token_dataset()
    ).run()
    ours, stock = results(tmp_path / "ours"), results(tmp_path / "stock")
    for name in stock:  # the fused kernel rounds differently
        torch.testing.assert_close(ours[name], stock[name], rtol=1e-4, atol=1e-5)


def test_run_saves_what_stock_loads_and_says_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runner = make_runner(tmp_path, n_checkpoints=1)
    sae = runner.run()
    saved = SAE.load_from_disk(tmp_path / "output")
    assert saved.cfg.architecture() == "jumprelu"
    assert saved.cfg.metadata.hook_name == "blocks.0.hook_resid_post"
    assert saved.cfg.metadata[KEY] == model_identity(runner.model)
    x = torch.randn(5, D_IN)
    with torch.no_grad():
        hidden_pre = sae.encode_with_hidden_pre(x)[1]
        expected = sae.decode(hidden_pre * (hidden_pre > saved.threshold))
    torch.testing.assert_close(saved(x), expected, rtol=1e-5, atol=1e-6)
    cfg = json.loads((tmp_path / "output" / "runner_cfg.json").read_text())
    assert StockConfig.from_dict(cfg).sae.to_dict()["matryoshka_widths"] == [4, 12, 32]
    assert sorted(os.listdir(tmp_path / "output")) == [
        "cfg.json",
        "runner_cfg.json",
        "sae_weights.safetensors",
        "sparsity.safetensors",
    ]
    last_lines = capsys.readouterr().out.strip().splitlines()[-2:]
    assert str(tmp_path / "output") in last_lines[0]
    assert str(runner.checkpoint_path) in last_lines[1]
    assert runner.output_path == tmp_path / "output"


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "topk", "k": 3},
        {"architecture": "standard"},
        {"activation": "jumprelu", "k": None},
        {"autocast": True},
        {"dtype": "bfloat16"},
        {"lr_scheduler_name": "constant", "lr_decay_to": 0.1, "lr_decay_steps": 19},
        {"latent_order": "frequency", "k_start": 9.0, "k_anneal_steps": 20, "resample_every": 3},
        {"refinement_step": 0.3},
    ],
    ids=str,
)
def test_other_saes_and_precisions_train_and_resume(tmp_path: Path, changes: dict[str, Any]):
    if changes.get("architecture") in ("topk", "standard"):
        changes = {"matryoshka_widths": ..., "k": ...} | changes
    given = {name: value for name, value in changes.items() if value is not ...}
    dropped = [name for name, value in changes.items() if value is ...]

    def runner(folder: Path, **more: Any) -> MatryoshkaSAETrainingRunner:
        torch.manual_seed(0)
        all_options = options(folder, **given, **more)
        for name in dropped:
            del all_options[name]
        return MatryoshkaSAETrainingRunner(
            LanguageModelSAERunnerConfig(**all_options),
            override_model=TinyModel(),
            override_dataset=token_dataset(),
        )

    runner(tmp_path / "whole").run()
    checkpoint = interrupted(runner(tmp_path / "parts"), step=11)
    runner(tmp_path / "parts", resume_from_checkpoint=checkpoint).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


@pytest.mark.slow
@needs_compiler
def test_compiled_sae_is_interrupted_and_resumed(tmp_path: Path):
    compiled = {"compile_sae": True, "training_tokens": 12 * 32}
    make_runner(tmp_path / "whole", **compiled).run()
    checkpoint = interrupted(make_runner(tmp_path / "parts", **compiled), step=5)
    make_runner(tmp_path / "parts", resume_from_checkpoint=checkpoint, **compiled).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


# ---- fused Adam


def test_training_uses_the_fused_kernel_and_exact_step_counts(tmp_path: Path):
    runner = make_runner(tmp_path, save_final_checkpoint=True)
    runner.run()
    saved = torch.load(runner.checkpoint_path / "final_768" / "trainer_state.pt")  # type: ignore
    assert saved["optimizer"]["param_groups"][0]["fused"] is True
    assert {state["step"].item() for state in saved["optimizer"]["state"].values()} == {24}
    assert saved["n_training_steps"] == 24


# ---- interruption and resuming


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("cached", {"prefix_sampling": "random", "n_prefixes": 3}),
        ("cached", {"normalize_activations": "expected_average_only_in"}),
        ("cached", {"activation": "relu", "k": None, "l1_warm_up_steps": 15, "target_l0": 4.0}),
        ("cached", {"prefetch_llm_batches": 3}),
        ("tokens", {"normalize_activations": "covariance_whitening"}),
        ("tokens", {"prefetch_llm_batches": True, "activations_mixing_fraction": 0.0}),
        ("text", {"b_dec_init": "geometric_median", "activations_mixing_fraction": 0.9}),
    ],
    ids=str,
)
def test_resumed_run_ends_with_the_numbers_of_an_uninterrupted_one(
    tmp_path: Path, source: str, changes: dict[str, Any]
):
    if source == "cached":
        cached = save_cached_activations(tmp_path)
        changes = changes | {"use_cached_activations": True, "cached_activations_path": cached}
    dataset = text_dataset() if source == "text" else token_dataset()
    make_runner(tmp_path / "whole", dataset, **changes).run()
    checkpoint = None
    for step in (1, 8):  # steps of each process
        runner = make_runner(
            tmp_path / "parts", dataset, resume_from_checkpoint=checkpoint, **changes
        )
        signal_at_step(runner, step)
        with pytest.raises(TrainingInterrupted) as caught:
            runner.run()
        checkpoint = str(caught.value.checkpoint)
    assert caught.value.step == 9
    make_runner(tmp_path / "parts", dataset, resume_from_checkpoint=checkpoint, **changes).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


@pytest.mark.parametrize("source", ["tokens", "text"])
@pytest.mark.parametrize("n_epochs", [1, 2])
def test_live_store_goes_on_where_it_stopped(tmp_path: Path, source: str, n_epochs: int):
    n_rows = 600 if n_epochs == 1 else 75  # 24 steps need about 110 sequences
    dataset = token_dataset(n_rows) if source == "tokens" else text_dataset(n_rows // 15)
    whole, first = (make_runner(tmp_path / name, dataset) for name in ("whole", "parts"))
    whole.run()
    checkpoint = interrupted(first, step=20)
    second = make_runner(tmp_path / "parts", dataset, resume_from_checkpoint=checkpoint)
    second.run()
    assert first.model.seen + second.model.seen == whole.model.seen
    if n_epochs == 1:
        assert len(set(whole.model.seen)) == len(whole.model.seen)


def test_evaluations_draw_from_the_same_stream_and_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("WANDB_MODE", "offline")

    def runner(name: str, **changes: Any) -> MatryoshkaSAETrainingRunner:
        # evaluates every 6th step; 15 steps are in the middle of everything
        logger = LoggingConfig(wandb_log_frequency=2, eval_every_n_wandb_logs=3)
        settings = {"n_eval_batches": 1, "eval_batch_size_prompts": 2, "n_checkpoints": 1}
        return make_runner(tmp_path / name, logger=logger, **settings, **changes)

    whole = runner("whole")
    whole.run()
    first = runner("parts")
    checkpoint = interrupted(first, step=15)
    wandb.finish()
    second = runner("parts", resume_from_checkpoint=checkpoint)
    second.run()
    assert first.model.seen + second.model.seen == whole.model.seen
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_run_with_a_message_and_restores_handlers(tmp_path: Path, signum: int):
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    runner = make_runner(tmp_path)
    signal_at_step(runner, 3, signum)
    with pytest.raises(TrainingInterrupted) as caught:
        runner.run()
    message, folder = str(caught.value), caught.value.checkpoint
    assert folder == runner.checkpoint_path / "96"  # type: ignore[operator]
    assert signal.Signals(signum).name in message
    assert "step 3" in message
    assert f"resume_from_checkpoint={str(folder)!r}" in message
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert not (tmp_path / "output").exists()


def test_interruption_without_checkpoint_path_says_that_nothing_was_saved(tmp_path: Path):
    runner = make_runner(tmp_path, checkpoint_path=None)
    signal_at_step(runner, 3)
    with pytest.raises(TrainingInterrupted, match="Nothing was saved, since checkpoint_path=None"):
        runner.run()


def test_signals_while_saving_do_not_tear_the_checkpoint(tmp_path: Path):
    class SignalledWhileSaving(MatryoshkaSAETrainingRunner):
        def save_checkpoint(self, checkpoint_path: Path | None) -> None:
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), signum)
            super().save_checkpoint(checkpoint_path)

    make_runner(tmp_path / "whole").run()
    runner = make_runner(tmp_path / "parts", runner_class=SignalledWhileSaving)
    checkpoint = interrupted(runner, step=6)
    make_runner(tmp_path / "parts", resume_from_checkpoint=checkpoint).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


def test_signal_after_the_last_step_waits_for_the_result(tmp_path: Path):
    class SignalledAtTheEnd(MatryoshkaSAETrainingRunner):
        def save_final_sae(self, *args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            super().save_final_sae(*args, **kwargs)

    runner = make_runner(tmp_path, runner_class=SignalledAtTheEnd)
    with pytest.raises(KeyboardInterrupt):  # SIGINT's own effect, late
        runner.run()
    SAE.load_from_disk(tmp_path / "output")


def test_a_runner_runs_once(tmp_path: Path):
    runner = make_runner(tmp_path)
    runner.run()
    before = results(tmp_path)
    with pytest.raises(RuntimeError, match="has run before.*resume_from_checkpoint"):
        runner.run()
    assert_same(results(tmp_path), before)


def test_signal_before_the_first_step_acts_at_once(tmp_path: Path):
    runner = make_runner(tmp_path, normalize_activations="expected_average_only_in")
    runner.model.run_with_cache = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT)  # type: ignore
    with pytest.raises(KeyboardInterrupt):
        runner.run()


def test_an_ignored_signal_stays_ignored(tmp_path: Path):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    runner = make_runner(tmp_path)
    signal_at_step(runner, 5, signal.SIGINT)
    runner.run()
    SAE.load_from_disk(tmp_path / "output")


def test_training_outside_the_main_thread(tmp_path: Path):
    make_runner(tmp_path / "main").run()
    runner = make_runner(tmp_path / "thread")
    thread = threading.Thread(target=runner.run)
    thread.start()
    thread.join()
    assert_same(results(tmp_path / "thread"), results(tmp_path / "main"))


@pytest.mark.slow
def test_sigterm_to_a_process_then_resume(tmp_path: Path):
    cached = save_cached_activations(tmp_path)
    script = Path(__file__).parents[1] / "runner_helpers.py"
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "parts"), cached],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "step 50\n" in iter(process.stdout.readline, "")  # reads no further
    process.terminate()
    errors = process.communicate()[1]
    assert process.returncode == 1
    assert "SIGTERM ended training after step" in errors
    (checkpoint,) = (tmp_path / "parts" / "checkpoints").glob("*/*")
    assert 50 * 32 <= int(checkpoint.name) < 400 * 32
    assert str(checkpoint) in errors
    assert not (tmp_path / "parts" / "output").exists()

    long_run(tmp_path / "whole", cached).run()
    long_run(tmp_path / "parts", cached, resume_from_checkpoint=str(checkpoint)).run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


@pytest.mark.parametrize("name", ["cfg.json", "runner_cfg.json", "sparsity.safetensors"])
def test_other_files_at_output_path_stop_the_run_before_it_begins(tmp_path: Path, name: str):
    output = tmp_path / "output"
    output.mkdir()
    (output / name).write_text("mine")
    with pytest.raises(FileExistsError, match=f"{output} holds {name}"):
        make_runner(tmp_path, output_path=str(output))
    assert [path.read_text() for path in output.iterdir()] == ["mine"]


@pytest.mark.parametrize("device", ["cpuu", "cuda:99"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str):
    with pytest.raises(ValueError, match=f"device='{device}' cannot be used"):
        make_runner(tmp_path, device=device)


# ---- checkpoints in the middle of a run


def test_a_users_files_in_a_checkpoint_stay_when_it_is_written_again(tmp_path: Path):
    given = {
        "save_final_checkpoint": True,
        "logger": LoggingConfig(log_to_wandb=False, wandb_id="one"),
    }
    make_runner(tmp_path, **given).run()
    checkpoint = tmp_path / "checkpoints" / "one" / "final_768"
    (checkpoint / "mine").mkdir()
    (checkpoint / "mine" / "notes.txt").write_text("mine")
    (checkpoint / "link").symlink_to("mine/notes.txt")
    before = (checkpoint / "trainer_state.pt").stat().st_ino
    make_runner(tmp_path, **given).run()
    assert (checkpoint / "trainer_state.pt").stat().st_ino != before
    assert (checkpoint / "mine" / "notes.txt").read_text() == "mine"
    assert (checkpoint / "link").is_symlink()


def test_periodic_checkpoints_are_exact_and_stay_after_an_interruption(tmp_path: Path):
    make_runner(tmp_path / "whole").run()
    runner = make_runner(tmp_path / "parts", n_checkpoints=3)
    interrupted(runner, step=20)
    folder = runner.checkpoint_path
    assert folder is not None
    # thresholds 192, 384, 576: the first step beyond each, and the interruption
    assert sorted(os.listdir(folder)) == ["224", "416", "608", "640"]
    assert torch.load(folder / "224" / "trainer_state.pt")["n_training_steps"] == 7
    again = make_runner(tmp_path / "parts", resume_from_checkpoint=str(folder / "224"))
    again.run()
    assert_same(results(tmp_path / "parts"), results(tmp_path / "whole"))


def test_resumed_run_writes_no_burst_of_checkpoints(tmp_path: Path):
    first = make_runner(tmp_path, n_checkpoints=7)  # thresholds 96, 192, ...
    checkpoint = interrupted(first, step=14)
    second = make_runner(tmp_path, n_checkpoints=7, resume_from_checkpoint=checkpoint)
    second.run()
    names = sorted(map(int, os.listdir(second.checkpoint_path)))  # type: ignore
    assert names == [512, 608, 704]


def test_one_checkpoint_serves_all_thresholds_that_a_step_passes(tmp_path: Path):
    runner = make_runner(
        tmp_path, n_checkpoints=100, training_tokens=4 * 32, lr_warm_up_steps=0, lr_decay_steps=0
    )
    runner.run()
    assert sorted(map(int, os.listdir(runner.checkpoint_path))) == [32, 64, 96, 128]  # type: ignore


def test_random_generators_are_restored(tmp_path: Path):
    def draw() -> list[float]:
        return [torch.rand(1).item(), np.random.rand(), np.random.randn(), random.random()]

    drawn: list[list[float]] = []
    whole, first = make_runner(tmp_path / "whole"), make_runner(tmp_path / "parts")
    np.random.seed(3)
    random.seed(3)
    np.random.randn()  # leaves half of its pair behind
    call_at_step(whole, 7, lambda: drawn.append(draw()))
    torch.manual_seed(5)
    whole.run()
    np.random.seed(3)
    random.seed(3)
    np.random.randn()
    torch.manual_seed(5)
    checkpoint = interrupted(first, step=6)
    second = make_runner(tmp_path / "parts", resume_from_checkpoint=checkpoint)
    np.random.seed(4)
    random.seed(4)
    call_at_step(second, 1, lambda: drawn.append(draw()))
    second.run()
    assert drawn[0] == drawn[1]


# ---- what SAELens must keep for this to work


@settings(max_examples=25)
@given(
    batch_size=st.integers(1, 12),
    extra=st.integers(0, 30),
    mix_fraction=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    load_sizes=st.lists(st.integers(1, 40), min_size=12, max_size=12),
)
def test_mixing_buffer_serves_what_that_of_saelens_serves(
    batch_size: int, extra: int, mix_fraction: float, load_sizes: list[int]
):
    def loads() -> Any:
        ends = np.cumsum(load_sizes)
        return iter(torch.arange(ends[-1])[:, None].split(load_sizes))

    size = batch_size + extra
    torch.manual_seed(1)
    expected = list(mixing_buffer(size, batch_size, loads(), mix_fraction))
    torch.manual_seed(1)
    buffer = MixingBuffer(size, batch_size, loads(), mix_fraction)
    got = [batch.tolist() for batch in buffer]
    assert buffer.kept is not None
    # SAELens's empties itself when its source ends, which a store's never does
    rest = [batch.tolist() for batch in buffer.kept.split(batch_size) if len(batch) == batch_size]
    assert got + rest == [batch.tolist() for batch in expected]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"n_batches_in_buffer": 3}, "buffer of 24 tokens.*train_batch_size_tokens=32"),
        ({"activations_mixing_fraction": 1.5}, "activations_mixing_fraction=1.5"),
    ],
)
def test_impossible_buffer_is_refused_before_training(
    tmp_path: Path, given: dict[str, Any], says: str
):
    with pytest.raises(ValueError, match=says):
        make_runner(tmp_path, **given)


class TestDecayThatEndsAboveZero:
    @staticmethod
    def rates(runner: MatryoshkaSAETrainingRunner) -> list[float]:
        """The learning rate of every step."""
        rates: list[float] = []

        def note(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            if any(p is runner.sae.W_dec for p in optimizer.param_groups[0]["params"]):
                rates.append(optimizer.param_groups[0]["lr"])

        handle = register_optimizer_step_pre_hook(note)
        runner.run()
        handle.remove()
        return rates

    def test_is_linear_to_its_share(self, tmp_path: Path):
        options = {"lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr": 1e-2}
        rates = self.rates(make_runner(tmp_path, lr_decay_to=0.1, lr_decay_steps=10, **options))
        assert rates[:14] == pytest.approx([1e-2] * 14)
        assert rates[14:] == pytest.approx([1e-2 * (1 - 0.09 * i) for i in range(10)])

    @staticmethod
    def config(folder: Path, **changes: Any) -> LanguageModelSAERunnerConfig:
        changes = {"lr_scheduler_name": "constant", "lr_decay_to": 0.1, **changes}
        return LanguageModelSAERunnerConfig(**options(folder, **changes))

    def test_stock_runner_says_that_it_cannot(self, tmp_path: Path):
        cfg = self.config(tmp_path)
        MatryoshkaSAETrainingRunner(  # which leaves it as it was
            cfg, override_model=TinyModel(), override_dataset=token_dataset()
        )
        runner = LanguageModelSAETrainingRunner(
            cfg, override_model=TinyModel(), override_dataset=token_dataset()
        )
        with pytest.raises(ValueError, match="lr_decay_to=0.1 .*MatryoshkaSAETrainingRunner"):
            runner.run()

    @pytest.mark.parametrize("share", [1.0, -0.1])
    def test_impossible_shares(self, tmp_path: Path, share: float):
        with pytest.raises(ValueError, match=f"lr_decay_to={share} must be a share of lr"):
            self.config(tmp_path, lr_decay_to=share)

    @pytest.mark.parametrize(
        "changes", [{"lr_decay_steps": 0}, {"lr_scheduler_name": "cosineannealing"}]
    )
    def test_without_a_decay_from_the_full_rate(self, tmp_path: Path, changes: dict[str, Any]):
        with pytest.raises(ValueError, match="needs lr_decay_steps .*'constant'"):
            self.config(tmp_path, **changes)

    def test_is_written_down_only_where_it_is_given(self, tmp_path: Path):
        cfg = self.config(tmp_path)
        assert LanguageModelSAERunnerConfig.from_dict(cfg.to_dict()).lr_decay_to == 0.1
        assert replace(cfg, seed=3).lr_decay_to == 0.1
        assert "lr_decay_to" not in LanguageModelSAERunnerConfig(**options(tmp_path)).to_dict()


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (SAETrainer, "_checkpoint_if_needed"),
        (SAETrainer, "_log_train_step"),
        (SAETrainer, "_run_and_log_evals"),
        (SAETrainer, "_reset_running_sparsity_stats"),
        (SAETrainer, "maybe_reset_sparsity"),
        (SAETrainer, "full_sparsity_window_log"),
        (LoggingConfig, "log"),
        (ActivationsStore, "get_filtered_llm_batch"),
        (ActivationsStore, "_iterate_tokenized_sequences"),
        (ActivationsStore, "_iterate_filtered_activations"),
        (ActivationsStore, "get_data_loader"),
        (LanguageModelSAETrainingRunner, "_set_sae_metadata"),
        (LanguageModelSAETrainingRunner, "save_final_sae"),
        (LanguageModelSAETrainingRunner, "run_trainer_with_interruption_handling"),
    ],
)
def test_what_we_override_is_still_there(owner: type, name: str):
    assert callable(getattr(owner, name, None))
