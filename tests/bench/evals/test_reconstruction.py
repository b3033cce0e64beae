"""L0, FVU and the decoder max cosine against formulas written out here."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import D_MODEL, HOOK, random_sae
from torch.overrides import TorchFunctionMode

from sae_lens_matryoshka.bench.config import TextSource
from sae_lens_matryoshka.bench.evals import reconstruction as fidelity
from sae_lens_matryoshka.bench.evals.reconstruction import (
    activations,
    decoder_max_cosine,
    measure,
)
from sae_lens_matryoshka.bench.inputs.data import link_data
from sae_lens_matryoshka.demo.model import load_model


def by_whole_matrix(W_dec: torch.Tensor) -> float:
    """The mean of the largest entries off the diagonal of all cosines."""
    rows = W_dec.detach().double()
    cosines = (rows @ rows.T) / torch.outer(rows.norm(dim=1), rows.norm(dim=1))  # (d_sae, d_sae)
    others = ~torch.eye(len(rows), dtype=torch.bool)
    return cosines[others].view(len(rows), -1).max(1).values.mean().item()


def decoder(d_sae: int, seed: int = 0) -> torch.Tensor:
    """Rows of random directions and norms."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d_sae, 24, generator=generator)


def test_measures_are_those_of_the_formulas():
    sae = random_sae()
    x = torch.randn(2500, D_MODEL) + 3  # more than one block
    found = measure(sae, x)
    with torch.no_grad():
        acts = sae.encode(x)
        x_hat = sae.decode(acts)
    assert found.l0 == pytest.approx((acts > 0).sum(1).float().mean().item())
    total = (x - x.mean(0)).pow(2).sum()
    assert found.fvu == pytest.approx(((x - x_hat).pow(2).sum() / total).item(), rel=1e-5)
    assert found.silent == pytest.approx((acts > 0).any(0).logical_not().float().mean().item())
    assert found.decoder_max_cosine == pytest.approx(by_whole_matrix(sae.W_dec), abs=1e-6)
    assert found.tokens == 2500


def test_a_perfect_sae_leaves_nothing_unexplained():
    sae = random_sae(d_sae=2 * D_MODEL)
    eye = torch.eye(D_MODEL)
    sae.W_dec.data = torch.cat([eye, -eye])
    sae.W_enc.data = sae.W_dec.data.T.contiguous()
    sae.b_enc.data.zero_()
    sae.b_dec.data.zero_()
    sae.threshold.data.zero_()
    found = measure(sae, torch.randn(100, D_MODEL))
    assert found.fvu == pytest.approx(0, abs=1e-10)
    assert found.l0 == D_MODEL
    assert found.decoder_max_cosine == 0  # its neighbours are at right angles or opposite


@pytest.mark.parametrize("block", [1, 7, 32, 99, 100, 512])
def test_cosines_in_blocks_are_those_of_the_whole_matrix(
    block: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fidelity, "LATENTS_AT_A_TIME", block)
    W_dec = decoder(100)
    before = W_dec.clone()
    assert decoder_max_cosine(W_dec) == pytest.approx(by_whole_matrix(W_dec), abs=1e-6)
    assert torch.equal(W_dec, before)


def test_no_block_holds_all_cosines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fidelity, "LATENTS_AT_A_TIME", 8)
    largest = 0

    class Sizes(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with Sizes():
        decoder_max_cosine(decoder(100))
    assert largest == 100 * 24  # the decoder itself


def test_decoder_max_cosine_has_a_sign_and_no_scale():
    W_dec = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]])
    assert decoder_max_cosine(W_dec) == pytest.approx(0)  # an opposite row is no likeness
    assert decoder_max_cosine(W_dec[:2]) == pytest.approx(-1)
    twins = torch.tensor([[1.0, 1.0], [4.0, 4.0], [3.0, 0.0]])
    assert decoder_max_cosine(twins) == pytest.approx((1 + 1 + 0.5**0.5) / 3)
    assert decoder_max_cosine(twins.bfloat16()) == pytest.approx((1 + 1 + 0.5**0.5) / 3)
    assert decoder_max_cosine(torch.stack([twins, twins], dim=1)) == pytest.approx(  # heads
        decoder_max_cosine(twins)
    )


def test_rows_of_zeros_are_left_out():
    W_dec = decoder(50)
    with_zeros = torch.cat([torch.zeros(2, 24), W_dec, torch.zeros(1, 24)])
    assert decoder_max_cosine(with_zeros) == pytest.approx(decoder_max_cosine(W_dec))
    opposite = torch.tensor([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert decoder_max_cosine(opposite) == pytest.approx(-1)


@pytest.mark.parametrize("n_zeros", [0, 3])
def test_a_latent_without_another_has_no_cosine(n_zeros: int):
    alone = torch.cat([decoder(1), torch.zeros(n_zeros, 24)])
    assert math.isnan(decoder_max_cosine(alone))
    assert math.isnan(measure(random_sae(d_sae=1), torch.randn(9, D_MODEL)).decoder_max_cosine)


def test_broken_weights_do_not_pass_for_a_number():
    W_dec = decoder(50)
    W_dec[3, 3] = math.nan
    assert math.isnan(decoder_max_cosine(W_dec))


def test_activations_are_the_models_without_special_tokens(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    link_data(data_folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    model, sae = load_model(), random_sae()
    text = TextSource(dataset="demo/heldout_text", context_size=32, sequences=5)
    x = activations(model, sae, text, batch_size=2)
    assert x.shape[1] == D_MODEL
    assert 5 * 20 < len(x) < 5 * 32  # every sequence begins with BOS, documents are joined by it
    assert torch.equal(x, activations(model, sae, text, batch_size=2))
    from sae_lens import ActivationsStore

    store = ActivationsStore.from_sae(model, sae, context_size=32, dataset="demo/heldout_text")
    tokens = store.get_batch_tokens(2)
    _, cache = model.run_with_cache(tokens, prepend_bos=False)
    kept = tokens[0] != model.tokenizer.bos_token_id
    expected = cache[HOOK][0][kept]
    torch.testing.assert_close(x[: len(expected)], expected)
