import json
from pathlib import Path

import pytest

from sae_lens_matryoshka.settings.yaml_file import ConfigError, read_mapping, read_settings
from sae_lens_matryoshka.training.settings.from_file import checked_config

SMALL = """\
architecture: matryoshka
d_in: 16
d_sae: 64
k: 4
model_name: gpt2
hook_name: blocks.0.hook_resid_post
dataset_path: some/dataset
verbose: false
logger:
  log_to_wandb: false
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "config.yaml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def load(path: Path, *overrides: str, **kwargs):
    return checked_config(read_settings(path, list(overrides)), str(path), **kwargs)


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(path, *overrides)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_flat_keys_and_keys_under_sae_give_the_same_config(write):
    nested = SMALL.replace("architecture:", "sae:\n  architecture:")
    nested = nested.replace("\nd_in", "\n  d_in").replace("\nd_sae", "\n  d_sae")
    flat = load(write(SMALL))
    config = load(write(nested.replace("\nk:", "\n  k:"), "nested.yaml"))
    assert config.sae == flat.sae
    assert config.sae.architecture() == "matryoshka"
    assert config.sae.k == 4
    assert not config.logger.log_to_wandb


def test_the_architecture_is_ours_unless_given(write):
    path = write(SMALL.replace("architecture: matryoshka", ""))
    assert load(path).sae.architecture() == "matryoshka"
    assert load(path, "architecture=topk").sae.architecture() == "topk"


def test_numbers_with_exponents_are_numbers(write):
    config = load(write(SMALL + "lr: 3e-4\ntraining_tokens: 5e8\nadam_beta2: 9.99E-1\n"))
    assert config.lr == 3e-4
    assert config.adam_beta2 == 0.999
    assert config.training_tokens == 500_000_000
    assert isinstance(config.training_tokens, int)


def test_what_only_looks_like_a_number_stays_text(write):
    assert load(write(SMALL), "dataset_path='3e-4'").dataset_path == "3e-4"
    assert load(write(SMALL), "dataset_path=e-4").dataset_path == "e-4"


def test_lists_become_what_the_config_wants(write):
    config = load(write(SMALL), "seqpos_slice=[1, null]", "exclude_special_tokens=[0, 1]")
    assert config.seqpos_slice == (1, None)
    assert config.exclude_special_tokens == [0, 1]


def test_overrides_win_the_last_one_most(write):
    path = write(SMALL)
    config = load(path, "sae.k=5", "k=6", "logger.run_name=mine", "lr=1e-3", "n_checkpoints=2")
    assert config.sae.k == 6
    assert config.logger.run_name == "mine"
    assert config.lr == 1e-3
    assert config.n_checkpoints == 2
    assert load(path, "k=6", "sae.k=5").sae.k == 5
    assert load(path, "sae={k: 7, decoder_init_norm: 1}").sae.k == 7


def test_overrides_create_keys_in_mappings(write):
    path = write(SMALL + "model_kwargs: {a: 1}\n")
    config = load(path, "model_kwargs.b=2", "model_from_pretrained_kwargs.dtype=bfloat16")
    assert config.model_kwargs == {"a": 1, "b": 2}
    assert config.model_from_pretrained_kwargs == {"dtype": "bfloat16"}


def test_device_and_dtype_go_to_runner_and_sae(write):
    config = load(write(SMALL + "dtype: bfloat16\n"))
    assert (config.dtype, config.sae.dtype) == ("bfloat16", "bfloat16")
    config = load(write(SMALL + "dtype: bfloat16\n"), "sae.dtype=float32")
    assert (config.dtype, config.sae.dtype) == ("bfloat16", "float32")


def test_a_saved_config_is_read_back(write):
    saved = load(write(SMALL + "seqpos_slice: [1, null]\nmatryoshka_widths: [8, 64]\n"))
    path = write(json.dumps(saved.to_dict()), "runner_cfg.json")
    config = load(path, "lr=1e-3", is_saved=True)
    assert config.checkpoint_path == saved.checkpoint_path
    assert config.sae.to_dict() == saved.sae.to_dict()
    assert config.to_dict() == saved.to_dict() | {"lr": 1e-3}


@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("lrr: 1", "lr"),
        ("kk: 3", "k"),
        ("matryoshka_width: [8]", "matryoshka_widths"),
        ("wandb_project: x", "logger.wandb_project"),
        ("sae: {dsae: 3}", "sae.d_sae"),
        ("sae: {dataset_path: x}", "dataset_path"),
        ("lr.end: 3", "lr_end"),
    ],
)
def test_an_unknown_key_names_the_nearest_and_the_line(write, given: str, nearest: str):
    path = write(SMALL + given)
    text = message(path)
    assert f"Did you mean {nearest!r}?" in text
    assert text.startswith(f"{path}, line 11: ")


def test_an_unknown_key_in_logger_and_in_an_override(write):
    path = write(SMALL + "  wandb_projekt: x\n")
    assert "Did you mean 'logger.wandb_project'?" in message(path)
    assert message(write(SMALL), "sae.kk=3").startswith("--set sae.kk=3: unknown key 'sae.kk'.")


def test_a_key_given_twice(write):
    path = write(SMALL + "lr: 1\nlr: 2\n")
    assert f"{path}, line 12: lr was given before ({path}, line 11: lr)" in message(path)
    path = write(SMALL + "sae: {k: 5}\n")
    assert f"sae.k was given before ({path}, line 4: k)" in message(path)


@pytest.mark.parametrize(
    ("given", "allowed"),
    [
        ("k: forty", "a number or null"),
        ("lr: '3e-4'", "a number"),
        ("training_tokens: 1.5", "a whole number"),
        ("training_tokens: true", "a whole number"),
        ("streaming: 1", "true or false"),
        ("model_name: 7", "text"),
        ("model_kwargs: [1]", "a mapping"),
        ("matryoshka_widths: 8", "a list (each a whole number) or null"),
        ("matryoshka_widths: [8, x]", "a list (each a whole number) or null"),
        ("activation: 3", "'batchtopk' or 'topk' or 'relu' or 'jumprelu'"),
    ],
)
def test_a_value_of_the_wrong_type_names_the_right_one(write, given: str, allowed: str):
    path = write(SMALL)
    assert message(path, given.replace(": ", "=", 1)).endswith(f"but must be {allowed}.")


def test_what_the_config_rejects_is_shown_with_the_file(write):
    path = write(SMALL)
    assert message(path, "k=65").startswith(f"{path}: k=65 must be greater than 0")
    assert "activation='gelu' must be one of" in message(path, "activation=gelu")
    assert "architecture='matrioshka' is not registered" in message(path, "architecture=matrioshka")
    assert "context_size" in message(path, "context_size=-1")


def test_missing_keys_are_named(write):
    path = write("model_name: gpt2\nd_in: 16\n")
    assert message(path).startswith(f"{path} lacks hook_name, dataset_path, d_sae.")


def test_yaml_errors_name_file_and_line(write):
    path = write("lr: 1\nk: [1, 2\nd_in: 3\n")
    assert message(path).startswith(f"{path}, line 3, column 5: no valid YAML: ")
    path = write("lr: 1\n\tk: 2\n")
    assert message(path).startswith(f"{path}, line 2")
    path = write("dataset_path: 2024-99-99\n")
    assert message(path).startswith(f"{path}, line 1: no valid YAML: ")


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n", "---\n"])
def test_an_empty_file(write, text: str):
    path = write(text)
    assert message(path).startswith(f"{path} is empty.")


@pytest.mark.parametrize("text", ["- lr\n- 3\n", "lr 3\n"])
def test_a_file_without_keys(write, text: str):
    assert "must hold lines of the form KEY: VALUE" in message(write(text))


def test_a_section_must_be_a_mapping(write):
    assert "sae must be a mapping of keys to values" in message(write("sae: 3\n"))
    assert "logger must be a mapping of keys to values" in message(write(SMALL), "logger=")


def test_an_override_must_have_a_key_and_a_value(write):
    assert "is not of the form KEY=VALUE" in message(write(SMALL), "sae.k")
    assert "is not of the form KEY=VALUE" in message(write(SMALL), "=3")
    assert message(write(SMALL), "k=[1").startswith("--set k=[1, line 1, column 3: no valid YAML: ")


def test_a_key_that_is_no_name(write):
    path = write(SMALL + "? [a, b]\n: c\n")
    assert f"{path}, line 11: a key must be a name, not a list." in message(path)
    with pytest.raises(ConfigError, match="line 11: a key must be a name, not a list."):
        read_mapping(path)


def test_a_missing_file_names_similar_ones(write, tmp_path: Path):
    path = write(SMALL, "gemma.yaml")
    assert message(tmp_path / "gema.yaml") == (
        f"There is no file {tmp_path / 'gema.yaml'}. Did you mean {path}?"
    )
    assert message(tmp_path / "x").endswith(f"{tmp_path} holds: gemma.yaml")
    assert "Nor is there a folder" in message(tmp_path / "no" / "x.yaml")
    assert message(tmp_path).endswith("Name the YAML file in it: gemma.yaml")


def test_a_file_that_is_no_text(tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"\xff\xfe\x00")
    assert message(path).startswith(f"{path} cannot be read: ")
