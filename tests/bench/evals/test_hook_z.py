"""SAEs of hooks with a dimension for heads, of modules, and those that cannot be measured."""

from pathlib import Path
from typing import Any

import pytest
import torch
from bench_helpers import D_MODEL, HOOK, WIDTHS, random_sae
from sae_lens import SAE

from sae_lens_matryoshka.bench import run
from sae_lens_matryoshka.bench.config import BenchConfig, TextSource, checked_config
from sae_lens_matryoshka.bench.evals import patches as seams
from sae_lens_matryoshka.bench.evals.reconstruction import activations, measure
from sae_lens_matryoshka.bench.inputs.data import link_data
from sae_lens_matryoshka.bench.inputs.saes import bench_form
from sae_lens_matryoshka.bench.jobs.plan import check_evals
from sae_lens_matryoshka.demo.model import MODEL_FOLDER, load_model
from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.saes.inference_sae import copy_of
from sae_lens_matryoshka.settings.model_names import hook_of
from sae_lens_matryoshka.settings.yaml_file import ConfigError

HOOK_Z = "blocks.1.attn.hook_z"
MODULE = "gpt_neox.layers.1"
BIOS = "LabHC/bias_in_bios_class_set1"


def hook_z_sae(reshape: str = "hook_z", hook_name: str = HOOK_Z) -> Any:
    """Random weights; reshaping as SAELens saves an SAE trained with reshape_activations."""
    sae = random_sae(widths=WIDTHS, hook_name=hook_name)
    sae.cfg.reshape_activations = reshape
    return copy_of(sae)


@pytest.mark.parametrize("reshape", ["none", "hook_z"])
def test_heads_are_flattened_whether_or_not_the_sae_does_it(reshape: str):
    sae = hook_z_sae(reshape)
    assert sae.hook_z_reshaping_mode is (reshape == "hook_z")
    measured = bench_form(sae, "a", HOOK_Z, "demo")
    x = torch.randn(7, 4, 64)  # (tokens, heads, d_head)
    given = x if reshape == "hook_z" else x.flatten(1)
    assert torch.equal(measured.encode(x.flatten(1)), sae.encode(given))
    assert sae.hook_z_reshaping_mode is (reshape == "hook_z")
    assert fingerprint(measured) == fingerprint(sae)  # results are found by it again


def test_activations_of_all_heads_are_side_by_side(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    link_data(data_folder, tmp_path)
    monkeypatch.chdir(tmp_path)
    model, sae = load_model(), bench_form(hook_z_sae(), "a", HOOK_Z, "demo")
    text = TextSource(dataset="demo/heldout_text", context_size=16, sequences=3)
    x = activations(model, sae, text, batch_size=2)
    assert x.shape[1:] == (D_MODEL,)
    seams.flatten_heads(model, HOOK_Z)
    assert torch.equal(x, activations(model, sae, text, batch_size=2))
    assert measure(sae, x).fvu > 0


def test_hooks_see_flat_activations():
    model, tokens, seen = load_model(), torch.arange(1, 9)[None], []
    _, cache = model.run_with_cache(tokens, names_filter=HOOK_Z)
    assert cache[HOOK_Z].shape == (1, 8, 4, 64)
    logits = model(tokens)
    for hook in (HOOK_Z, HOOK):
        seams.flatten_heads(model, hook)
    _, flat = model.run_with_cache(tokens, names_filter=[HOOK_Z, HOOK])
    assert torch.equal(flat[HOOK_Z], cache[HOOK_Z].flatten(2))
    assert flat[HOOK].shape == (1, 8, D_MODEL)

    def see(x: torch.Tensor, hook: Any) -> None:
        seen.append((hook.name, x))

    model.run_with_hooks(tokens, fwd_hooks=[(HOOK_Z, see)])
    assert seen[0][0] == HOOK_Z
    assert torch.equal(seen[0][1], flat[HOOK_Z])
    assert torch.equal(model(tokens), logits)


def test_a_block_of_a_hugging_face_model_is_its_hook(settings: dict[str, Any]):
    sae = random_sae(hook_name=MODULE)
    assert checked_config({**settings, "hook_name": MODULE}).hook_name == HOOK
    for hook in (HOOK, checked_config({**settings, "hook_name": MODULE}).hook_name):
        assert bench_form(sae, "a", hook, "demo").cfg.metadata.hook_name == HOOK
    assert hook_of("model.layers.12") == "blocks.12.hook_resid_post"
    assert hook_of("transformer.h.0") == "blocks.0.hook_resid_post"
    with pytest.raises(ConfigError, match="was trained on blocks.1.hook_resid_post, but hook"):
        bench_form(sae, "a", "blocks.2.hook_resid_post", "demo")


def test_a_block_and_its_hook_give_the_same_activations():
    from sae_lens.load_model import load_model as sae_lens_model

    kwargs = {"torch_dtype": torch.float32}
    module = sae_lens_model(
        "AutoModelForCausalLM", str(MODEL_FOLDER), device="cpu", model_from_pretrained_kwargs=kwargs
    )
    tokens = torch.arange(1, 40)[None]
    theirs = module.run_with_cache(tokens, names_filter=[MODULE])[1][MODULE]
    ours = load_model().run_with_cache(tokens, names_filter=HOOK)[1][HOOK]
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


def test_other_modules_are_refused(settings: dict[str, Any]):
    for module in ("gpt_neox.layers.1.mlp", "gpt_neox.layers", "model.embed_tokens"):
        with pytest.raises(ConfigError, match="only whole blocks"):
            checked_config({**settings, "hook_name": module})
        with pytest.raises(ConfigError, match="'a' cannot be measured: .*only whole blocks"):
            bench_form(random_sae(hook_name=module), "a", HOOK, "demo")


def test_hooks_that_saebench_cannot_read_are_refused(settings: dict[str, Any]):
    def config(hook: str) -> BenchConfig:
        return checked_config({**settings, "hook_name": hook})

    for hook in ("hook_embed", "ln_final.hook_normalized"):
        with pytest.raises(ConfigError, match="outside the model's blocks"):
            check_evals(config(hook))
    with pytest.raises(ConfigError, match="Leave core out"):
        check_evals(config("blocks.1.attn.hook_rot_q"))
    check_evals(config(HOOK_Z))


def test_one_head_and_transcoders_are_refused():
    from sae_lens import Transcoder, TranscoderConfig
    from sae_lens.saes.sae import SAEMetadata

    sae = random_sae()
    sae.cfg.metadata.hook_head_index = 0
    with pytest.raises(ConfigError, match="on head 0 alone"):
        bench_form(sae, "a", HOOK, "demo")
    metadata = SAEMetadata(hook_name=HOOK, hook_name_out="blocks.1.hook_mlp_out")
    transcoder = Transcoder(
        TranscoderConfig(d_in=8, d_sae=16, d_out=8, apply_b_dec_to_input=False, metadata=metadata)
    )
    with pytest.raises(ConfigError, match="is a transcoder"):
        bench_form(transcoder, "a", HOOK, "demo")


@pytest.mark.slow
def test_every_eval_measures_hook_z(data_folder: Path, tmp_path: Path):
    """With and without SAELens's reshaping."""
    for name, reshape in (("flat", "none"), ("reshaped", "hook_z")):
        hook_z_sae(reshape).save_model(tmp_path / name)
        assert SAE.load_from_disk(tmp_path / name).hook_z_reshaping_mode is (name == "reshaped")
    sizes = {"train_set_size": 40, "test_set_size": 20, "context_length": 24}
    evals = {
        "sparse_probing": {
            "dataset_names": [BIOS],
            "probe_train_set_size": 40,
            "probe_test_set_size": 20,
            "context_length": 24,
            "k_values": [1],
        },
        "tpp": {"dataset_names": [BIOS], "n_values": [2], **sizes},
        "scr": {
            "dataset_names": [BIOS],
            "n_values": [2],
            "column1_vals_lookup": {BIOS: [["professor", "nurse"]]},
            **sizes,
        },
        "sae_probes": {"dataset_names": ["96_spam_is"], "ks": [1]},
        "core": {
            "dataset": "demo/heldout_text",
            "n_eval_reconstruction_batches": 1,
            "n_eval_sparsity_variance_batches": 1,
        },
    }
    report = run(
        {
            "model": {"name": "demo", "device": "cpu"},
            "hook_name": HOOK_Z,
            "saes": [
                {"name": name, "folder": str(tmp_path / name), "levels": "outermost"}
                for name in ("flat", "reshaped")
            ],
            "evals": evals,
            "seeds": [0],
            "text": {"dataset": "demo/heldout_text", "context_size": 64, "sequences": 16},
            "data": str(data_folder),
            "output": str(tmp_path / "out"),
        },
        verbose=False,
    )
    assert not report.failed, report.markdown
    metrics = {
        name: {o.eval: o.metrics for o in report.outcomes if o.sae == name}
        for name in ("flat", "reshaped")
    }
    assert set(metrics["flat"]) == {"fidelity", *evals}
    assert metrics["flat"] == metrics["reshaped"]
