"""L0 and FVU against formulas written out here."""

from pathlib import Path

import pytest
import torch
from bench_helpers import D_MODEL, HOOK, random_sae

from sae_lens_matryoshka.bench.config import TextSource
from sae_lens_matryoshka.bench.data import link_data
from sae_lens_matryoshka.bench.fidelity import activations, measure
from sae_lens_matryoshka.demo.model import load_model


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
