"""Every example configuration, read the way the command line reads it. No network."""

from pathlib import Path

import pytest
from transformer_lens.supported_models import MODEL_ALIASES

from sae_lens_matryoshka.settings.yaml_file import read_settings
from sae_lens_matryoshka.training.settings.from_file import checked_config

FOLDER = Path(__file__).parents[2] / "train_configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str):
    path = FOLDER / f"{name}.yaml"
    return checked_config(read_settings(path, []), str(path))


def test_the_examples_are_there():
    assert NAMES == [
        "gemma-2-2b-layer12-65k",
        "gpt2-small-layer8",
        "pythia-160m-layer8",
        "tinystories",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_every_example_fits_together(name: str):
    config = load(name)
    sae, steps = config.sae, config.total_training_steps
    assert sae.architecture() == "matryoshka"
    assert any(config.model_name in aliases for aliases in MODEL_ALIASES.values())
    assert config.lr_decay_steps == steps // 5
    assert config.lr_warm_up_steps < steps - config.lr_decay_steps
    assert sae.widths[-1] == sae.d_sae
    assert config.exclude_special_tokens is True
    assert not config.dataset_trust_remote_code
    assert sae.normalize_activations == "expected_average_only_in"
    assert config.device == sae.device == "cuda"
    assert config.dtype == sae.dtype == "float32"
    buffer = config.n_batches_in_buffer * config.context_size
    assert 240_000 < buffer < 270_000
    # the first load must not overfill the buffer, nor the buffer lack a batch
    assert config.store_batch_size_prompts <= config.n_batches_in_buffer // 2
    assert config.train_batch_size_tokens <= buffer // 2
    assert not config.logger.log_to_wandb
    assert config.output_path == f"output/{name}"
    assert config.checkpoint_path.startswith(f"checkpoints/{name}/")


def test_gemma_is_the_papers_experiment():
    config = load("gemma-2-2b-layer12-65k")
    assert config.model_name == "gemma-2-2b"
    assert config.model_from_pretrained_kwargs == {"dtype": "bfloat16"}
    assert config.hook_name == "blocks.12.hook_resid_post"
    assert config.dataset_path == "monology/pile-uncopyrighted"
    assert config.context_size == 1024
    assert config.training_tokens == 500_000_000
    assert config.train_batch_size_tokens == 2048
    assert config.total_training_steps == 244_140
    assert config.lr == 3e-4
    assert config.lr_warm_up_steps == 1000
    sae = config.sae
    assert (sae.d_in, sae.d_sae, sae.k, sae.activation) == (2304, 65_536, 40, "batchtopk")
    assert sae.widths == [2048, 6144, 14336, 30720, 65536]
    assert sae.level_weights is None
    assert sae.aux_loss == "global"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "tinystories"])
def test_levels_are_the_papers_shares(name: str):
    sae = load(name).sae
    shares = [width / sae.d_sae for width in sae.widths]
    assert shares == [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1]


def test_pythia_and_gpt2():
    pythia, gpt2 = load("pythia-160m-layer8"), load("gpt2-small-layer8")
    assert (pythia.sae.d_in, pythia.sae.d_sae, pythia.total_training_steps) == (768, 16384, 244_140)
    assert pythia.hook_name == "blocks.8.hook_resid_post"
    assert (gpt2.sae.d_in, gpt2.sae.d_sae, gpt2.total_training_steps) == (768, 24576, 73_242)
    assert gpt2.hook_name == "blocks.8.hook_resid_pre"
    assert gpt2.seqpos_slice == (1, None)
    assert gpt2.is_dataset_tokenized


def test_tinystories_has_the_relu_objective_with_random_prefixes():
    config = load("tinystories")
    sae = config.sae
    assert (sae.activation, sae.prefix_sampling, sae.n_prefixes) == ("relu", "random", 10)
    assert (sae.d_in, sae.d_sae) == (768, 25_000)
    assert sae.target_l0 == 30
    assert config.training_tokens == 100_000_000
    assert sae.l1_warm_up_steps == config.total_training_steps // 5
    assert (config.adam_beta1, config.adam_beta2) == (0.5, 0.9375)
