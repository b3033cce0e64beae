"""SAEBench's own run_eval on an SAE, without this package: what its numbers are compared with.

python saebench_directly.py EVAL FIELDS.json SAE MODEL_FOLDER WARMING_SAE, in a folder that holds the
data sets. The warming SAE goes first, so that the SAE meets the caches that the first one leaves.
"""

import json
import os
import sys
from pathlib import Path

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
    if name == "sparse_probing":
        from sae_bench.evals.sparse_probing import main as module
        from sae_bench.evals.sparse_probing.eval_config import SparseProbingEvalConfig as Config

        extra = {}
    else:
        from sae_bench.evals.scr_and_tpp import main as module
        from sae_bench.evals.scr_and_tpp.eval_config import ScrAndTppEvalConfig as Config

        extra = {"perform_scr": name == "scr"}
    model = open_model(model_folder)

    class Given:
        from_pretrained_no_processing = staticmethod(lambda *_, **__: model)

    module.HookedTransformer = Given
    config = Config(
        model_name="demo",
        random_seed=0,
        llm_dtype="float32",
        llm_batch_size=32,
        **extra,
        **json.loads(Path(fields).read_text()),
    )
    for label, folder in (("warming", warming), ("compared", sae)):
        module.run_eval(config, [(label, SAE.load_from_disk(folder))], "cpu", "out")
    [result] = Path("out").rglob("compared*.json")
    Path("result.json").write_text(result.read_text())


main()
