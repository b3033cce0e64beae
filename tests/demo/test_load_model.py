from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from research.demo_model.settings import TrainSettings
from research.demo_model.tokenizer import save_tokenizer, train_tokenizer
from research.demo_model.trainer import build_model
from sae_lens_matryoshka.demo.model import MODEL_FOLDER, load_model
from sae_lens_matryoshka.demo.text import texts


@pytest.fixture(scope="module", params=["random", "shipped"])
def folder(
    request: pytest.FixtureRequest, small_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    if request.param == "shipped":
        return MODEL_FOLDER
    # a name that TransformerLens would take for another architecture
    folder = tmp_path_factory.mktemp("gemma-llama")
    tokenizer = train_tokenizer(texts("train", folder=small_text)[:500], 600, 1)
    save_tokenizer(tokenizer, folder)
    settings = TrainSettings(layers=2, width=48, heads=3, max_positions=64)
    model = build_model(settings, vocab_size=600)
    for param in model.parameters():  # biases and norms start at 0 and 1, which hides errors
        param.data += 0.1 * torch.randn_like(param)
    model.half().save_pretrained(folder)
    return folder


def test_logits_and_residual_equal_transformers(folder: Path):
    reference = GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = load_model(folder)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.cfg.d_vocab, (2, 64), generator=generator)
    with torch.no_grad():
        expected = reference(tokens, output_hidden_states=True)
        logits, cache = model.run_with_cache(tokens)
    assert expected.logits.abs().max() > 1
    torch.testing.assert_close(logits, expected.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        cache["blocks.0.hook_resid_post"], expected.hidden_states[1], rtol=1e-4, atol=1e-4
    )


def test_config_says_what_it_is(folder: Path):
    cfg: Any = load_model(folder).cfg
    assert cfg.model_name == "demo-neox-5m"
    assert cfg.original_architecture == "GPTNeoXForCausalLM"
    assert cfg.dtype == torch.float32
    assert str(folder) not in repr(cfg)


def test_text_is_read_with_bos(folder: Path):
    model = load_model(folder)
    plain = AutoTokenizer.from_pretrained(folder)
    ids = plain(" the first letter", add_special_tokens=False)["input_ids"]
    assert model.to_tokens(" the first letter").tolist() == [[0, *ids]]
    assert model.to_str_tokens(" the")[0] == "<|endoftext|>"


def test_missing_files_are_named(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="lacks tokenizer_config.json, \\*.safetensors"):
        load_model(tmp_path)
