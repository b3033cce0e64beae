"""SAEBench's own run_eval on an SAE, without this package: what its numbers are compared with.

python saebench_directly.py EVAL FIELDS.json SAE MODEL_FOLDER WARMING_SAE, in a folder that holds the
data sets. The warming SAE goes first, so that the SAE meets the caches that the first one leaves.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["JAXTYPING_DISABLE"] = "1"

import torch
from sae_lens import SAE
from transformer_lens import HookedTransformer
from transformer_lens.loading_from_pretrained import (
    get_pretrained_model_config,
    get_pretrained_state_dict,
)
from transformers import AutoModelForCausalLM, AutoTokenizer


def open_model(folder: str) -> HookedTransformer:
    hf_model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    cfg = get_pretrained_model_config(
        folder, device="cpu", dtype=torch.float32, default_prepend_bos=True
    )
    model = HookedTransformer(cfg, AutoTokenizer.from_pretrained(folder))
    model.load_and_process_state_dict(
        get_pretrained_state_dict(folder, cfg, hf_model=hf_model), fold_ln=False,
        center_writing_weights=False, center_unembed=False, fold_value_biases=False,
    )  # fmt: skip
    return model


def main() -> None:
    name, fields, sae, model_folder, warming = sys.argv[1:]
    given = json.loads(Path(fields).read_text())
    model = open_model(model_folder)
    if name in ALONE:
        ALONE[name](model, given, sae)
        return
    if name == "sparse_probing":
        from sae_bench.evals.sparse_probing import main as module
        from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig as Config

        extra = {}
    else:
        from sae_bench.evals.scr_and_tpp import main as module
        from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig as Config

        extra = {"perform_scr": name == "scr"}
    module.HookedTransformer = given_model(model)
    config = Config(
        model_name="demo",
        random_seed=0,
        llm_dtype="float32",
        llm_batch_size=32,
        **extra,
        **given,
    )
    for label, folder in (("warming", warming), ("compared", sae)):
        module.run_eval(config, [(label, SAE.load_from_disk(folder))], "cpu", "out")
    keep_result()


def core(model: HookedTransformer, given: dict[str, Any], sae: str) -> None:
    from sae_bench.evals.core import main as module

    module.HookedTransformer = given_model(model)
    compared = [("compared", SAE.load_from_disk(sae))]
    module.multiple_evals(
        compared,
        given["n_eval_reconstruction_batches"],
        given["n_eval_sparsity_variance_batches"],
        16,
        compute_featurewise_density_statistics=True,
        compute_featurewise_weight_based_metrics=True,
        dataset=given["dataset"],
        output_folder="out",
        device="cpu",
    )
    keep_result()


def sae_probes(model: HookedTransformer, given: dict[str, Any], sae: str) -> None:
    """sae-probes itself, without SAEBench around it."""
    from sae_probes import run_sae_evals
    from sae_probes.generate_model_activations import ensure_dataset_activations

    names, hook = given["dataset_names"], "blocks.1.hook_resid_post"
    ensure_dataset_activations("m", names, [hook], "acts", "cpu", 512, model=model)
    run_sae_evals(SAE.load_from_disk(sae), "m", hook, "l1", "normal", ks=given["ks"], seed=0,
        results_path="probes", model_cache_path="acts", datasets=names, device="cpu")  # fmt: skip
    [path] = Path("probes").rglob("*.json")
    entries = json.loads(path.read_text())
    metrics = {f"sae_top_{e['k']}_{m}": e[n] for e in entries for m, n in MEASURES.items()}
    Path("result.json").write_text(json.dumps({"eval_result_metrics": {"sae": metrics}}))


ALONE = {"core": core, "sae_probes": sae_probes}
MEASURES = {"test_accuracy": "test_acc", "test_auc": "test_auc", "test_f1": "test_f1"}


def given_model(model: HookedTransformer) -> type:
    class Given:
        from_pretrained_no_processing = staticmethod(lambda *_, **__: model)

    return Given


def keep_result() -> None:
    [result] = Path("out").rglob("compared*.json")
    Path("result.json").write_text(result.read_text())


main()
