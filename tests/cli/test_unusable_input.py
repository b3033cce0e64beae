"""Unusable input of every command: one message, exit status 2, at once."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from cli_helpers import FLAGS as SOME_FLAGS

import sae_lens_matryoshka

FLAGS = [*SOME_FLAGS, "--train_batch_size_tokens", "512"]
ROOT = Path(__file__).parents[2]  # of `research`
PACKAGE = Path(sae_lens_matryoshka.__file__).parent
# Runs each command in a process of its own that has imported the command line, but not SAELens.
DRIVER = """
import json, sys, time
sys.argv[:] = ["sae-lens-matryoshka"]
from multiprocessing import get_context
from typer.testing import CliRunner
from sae_lens_matryoshka import cli
from research.ground_truth.__main__ import app as ground_truth

def run(case):
    start = time.process_time()
    command, *rest = case["arguments"]
    app = (ground_truth, rest) if command == "ground_truth" else (cli.app, case["arguments"])
    done = CliRunner().invoke(*app)
    seconds = time.process_time() - start
    imported = [name for name in ("sae_lens", "torch") if name in sys.modules]
    return {**case, "code": done.exit_code, "output": done.output, "seconds": seconds, "imported": imported}

with get_context("fork").Pool(2, maxtasksperchild=1) as pool:
    print(json.dumps(pool.map(run, json.load(sys.stdin), chunksize=1)))
"""
CONFIG = """\
architecture: matryoshka
d_in: 16
d_sae: 64
k: 4
model_name: gpt2
hook_name: blocks.0.hook_resid_post
dataset_path: some/dataset
train_batch_size_tokens: 512
"""
BENCH = """\
model: {name: demo}
hook_name: blocks.1.hook_resid_post
text: {dataset: a/b}
saes: [{name: a, demo: matryoshka}]
evals: {core: }
output: out
"""
TOY = "{kind: toy_tree, output: out}"
SYNTHETIC = """\
kind: synthetic
model: mini
d_sae: 64
k: 4
samples: 100000
output: out
arms: {ours: {}, theirs: {architecture: batchtopk}}
"""
HAS_SAEBENCH = find_spec("sae_bench") is not None

TRAIN = [
    (["train", "no.yaml"], "no.yaml"),
    (["train", "broken.yaml"], "no valid YAML"),
    (["train", "empty.yaml"], "is empty"),
    (["train"], "Nothing to train"),
    (["train", "c.yaml", "--set", "kk=3"], "Did you mean 'k'?"),
    (["train", "c.yaml", "--set", "sae.kk=3"], "Did you mean 'sae.k'?"),
    (["train", "c.yaml", "--set", "logger.wandb_projekt=x"], "'logger.wandb_project'"),
    (["train", "c.yaml", "--set", "kk"], "KEY=VALUE"),
    (["train", "c.yaml", "--set", "k=many"], "a number"),
    (["train", "c.yaml", "--set", "training_tokens=1.5"], "a whole number"),
    (["train", "c.yaml", "--set", "k=65"], "k=65"),
    (["train", "c.yaml", "--set", "matryoshka_widths=[32,8]"], "strictly increasing"),
    (["train", "c.yaml", "--set", "activation=gelu"], "'batchtopk'"),
    (["train", "c.yaml", "--set", "l1_coefficient=1"], "no effect"),
    (["train", "c.yaml", "--set", "architecture=matrioshka"], "not registered"),
    (["train", "c.yaml", "--set", "architecture=topk", "--set", "widths=[8]"], "unknown key"),
    (["train", "c.yaml", "--set", "recipe=bset"], "'best'"),
    (["train", "c.yaml", "--set", "context_size=-1"], "context_size"),
    (["train", "c.yaml", "--set", "seqpos_slice=[500, 600]"], "empty range"),
    (["train", "c.yaml", "--set", "lr_warm_up_steps=100000"], "do not fit"),
    (["train", "c.yaml", "--set", "resample_every=100000"], "no effect"),
    (["train", "c.yaml", "--set", "normalize_activations=all"], "normalize_activations"),
    (["train", "c.yaml", "--set", "train_batch_size_tokens=4096"], "mixing buffer"),
    (["train", "c.yaml", "--set", "training_tokens=0"], "training_tokens"),
    (["train", "c.yaml", "--set", "model_name=gtp2"], "gpt2"),
    (["train", "c.yaml", "--set", "output_path=c.yaml/x"], "is no folder"),
    (["train", "c.yaml", "--set", "checkpoint_path=c.yaml/x"], "is no folder"),
    (["train", "c.yaml", "--set", "output_path=taken"], "taken holds cfg.json"),
    (["train", "c.yaml", "--set", "dataset_path=./nowhere"], "./nowhere"),
    (["train", "c.yaml", "--resume", "nowhere"], "nowhere"),
    (["train", "--resume", "folder"], "runner_cfg.json"),
    (["train", "c.yaml", "--lr", "3"], "Use --set"),
    (["train", "lacking.yaml"], "lacks hook_name, dataset_path, d_sae"),
    (["train", *FLAGS, "--kk", "3"], "Did you mean --k"),
    (["train", *FLAGS, "--k", "many"], "many"),
    (["train", *FLAGS, "--k", "65"], "k=65"),
    (["train", *FLAGS, "--architecture", "matrioshka"], "matrioshka"),
    (["train", *FLAGS, "--recipe", "best"], "give it in a file"),
    (["train", *FLAGS, "--model_name", "gtp2"], "gpt2"),
    (["train", *FLAGS, "--set", "lr=1"], "--lr 1"),
    (["train", *FLAGS, "--output_path", "c.yaml/x"], "is no folder"),
]
PUBLISH = [
    (["publish", "sae", "--repo-id", "me"], "user/name"),
    (["publish", "sae", "--repo-id", "me/a b"], "me/a b"),
    (["publish", "folder", "--repo-id", "me/x"], "holds no SAE"),
    (["publish", "id=folder", "--repo-id", "me/x"], "holds no SAE"),
    (["publish", "a..=sae", "--repo-id", "me/x"], "sae_id"),
    (["publish", "a=sae", "a=sae", "--repo-id", "me/x"], "Two SAEs"),
    (["publish", "sae", "--repo-id", "me/x", "--revision", "a b"], "revision"),
    (["publish", "sae", "--repo-id", "me/x", "--results", "folder"], "no results"),
    (["publish", "sae", "--repo-id", "me/x", "--dry-run", "folder"], "no dry run wrote"),
    (["publish", "sae", "--repo-id", "me/x", "--dry-run", "c.yaml/x"], "is no folder"),
    (["publish", "sae", "--repo-id", "me/x", "--dry-run", "d", "--private"], "no effect"),
    (["publish", "sae", "--repo", "me/x"], "--repo-id"),
]
CONVERT = [
    (["convert", "nowhere", "out"], "no folder"),
    (["convert", "folder", "out"], "holds no checkpoint"),
    (["convert", "sae", "folder"], "not empty"),
    (["convert", "sae", "c.yaml/x"], "is no folder"),
    (["convert", "c.yaml", "out"], "is a file"),
    (["convert", "sae", "out", "--revision", "main"], "no effect"),
    (["convert", "me/x", "out", "--revision", "a b"], "revision"),
    (["convert", "sae", "out", "--widths", "8;16"], "whole numbers"),
    (["convert", "sae", "out", "--context-size", "many"], "--context-size"),
]
GROUND_TRUTH = [
    (["quickstart", "--output", "c.yaml/x"], "is no folder"),
    (["bench", "no.yaml"], "no.yaml"),
    (["ground_truth", "toy.yaml", "--set", "sedes=[1]"], "'seeds'"),
    (["ground_truth", "toy.yaml", "--set", "steps=many"], "steps"),
    (["bench", "toy.yaml"], "python -m research.ground_truth toy.yaml"),
    (["bench", "kind.yaml"], "toy_tree"),
    (["ground_truth", "toy.yaml", "--set", "output=c.yaml/x"], "is no folder"),
    (["ground_truth", "synthetic.yaml", "--set", "model=huge"], "mini"),
    (["ground_truth", "synthetic.yaml", "--set", "arms.ours.kk=1"], "kk"),
    (
        ["ground_truth", "synthetic.yaml", "--set", "arms.ours.matryoshka_widths=[9,3]"],
        "increasing",
    ),
    (["ground_truth", "synthetic.yaml", "--set", "arms.ours.architecture=tpk"], "not registered"),
    (["ground_truth", "synthetic.yaml", "--set", "baseline=x"], "baseline"),
    (["ground_truth", "kind.yaml"], "toy_tree"),
    (["bench", "bench.yaml", "--set", "sedes=[1]"], "'seeds'"),
    (["bench", "bench.yaml", "--set", "evals.croe={}"], "'core'"),
    (["bench", "bench.yaml", "--set", "seeds=[0,0]"], "twice"),
    (["bench", "bench.yaml", "--set", "seeds"], "KEY=VALUE"),
    (["bench", "bench.yaml", "--set", "model.dtype=float16"], "bfloat16"),
]
SAEBENCH = [
    (["bench", "bench.yaml", "--set", "evals.core.batches=1"], "unknown key"),
    (["bench", "bench.yaml", "--set", "evals={sae_probes: {dataset_names: [x]}}"], "'x'"),
    (["bench", "bench.yaml", "--set", "evals={tpp: {n_values: [3]}}"], "n_values"),
    (["bench", "bench.yaml", "--only", "tpp"], "no such eval"),
    (["bench", "bench.yaml", "--set", "saes=[{name: a, folder: folder}]"], "holds no SAE"),
    (["bench", "bench.yaml", "--set", "saes=[{name: a, folder: sae}]"], "on blocks.0.hook"),
    (["bench", "bench.yaml", "--set", "data=nowhere"], "nowhere"),
    (["bench", "bench.yaml", "--set", "output=c.yaml/x"], "is no folder"),
    (["bench", "hub_model.yaml", "--set", "model={name: gtp2}"], "gpt2"),
    (["bench", "hub_model.yaml", "--set", "model={folder: folder}"], "no language model"),
    (["bench", "bench.yaml", "--set", "published=[{name: p, files: [no.json]}]"], "no.json"),
]
CASES = [*TRAIN, *PUBLISH, *CONVERT, *GROUND_TRUTH, *(SAEBENCH if HAS_SAEBENCH else [])]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{ROOT}", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unusable")
    for name, text in {
        "c.yaml": CONFIG,
        "lacking.yaml": "model_name: gpt2\nd_in: 16\n",
        "broken.yaml": "k: [1, 2\nd_in: 3\n",
        "empty.yaml": "",
        "bench.yaml": BENCH,
        "hub_model.yaml": BENCH.replace("demo: matryoshka", "repo: me/x, id: y"),
        "kind.yaml": "{kind: toy, output: out}",
        "toy.yaml": TOY,
        "synthetic.yaml": SYNTHETIC,
        "folder/notes.txt": "mine",
        "taken/cfg.json": "mine",
        "sae/cfg.json": '{"metadata": {"hook_name": "blocks.0.hook_resid_post"}}',
        "sae/sae_weights.safetensors": "",
    }.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> dict[str, dict[str, Any]]:
    cases = [{"arguments": arguments} for arguments, _ in CASES]
    process = subprocess.run(
        [sys.executable, "-c", DRIVER],
        input=json.dumps(cases),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return {json.dumps(case["arguments"]): case for case in json.loads(process.stdout)}


@pytest.mark.parametrize(
    ("arguments", "said"), CASES, ids=[" ".join(arguments) for arguments, _ in CASES]
)
def test_unusable_input(arguments: list[str], said: str, done: dict[str, dict[str, Any]]):
    case = done[json.dumps(arguments)]
    output = " ".join(re.sub("[─│╭╮╰╯]", " ", case["output"]).split())  # typer's boxes
    assert case["code"] == 2, output
    assert said in output
    assert case["imported"] == []
    assert output.replace("Error:", "Error ").count("Error ") == 1
    for unwanted in ("Traceback", "Loading", "--debug"):
        assert unwanted not in output
    assert len(output) < 1500  # every field of an arm
    assert case["seconds"] < 1


def processor_time() -> float:
    """Of finished child processes, in seconds: other processes do not count."""
    used = os.times()
    return used.children_user + used.children_system


def test_it_takes_no_time(folder: Path):
    command = "import sys; sys.argv[0] = 'sae-lens-matryoshka'\nfrom sae_lens_matryoshka.cli import main\nmain()"
    times: list[float] = []
    for _ in range(3):
        start = processor_time()
        process = subprocess.run(
            [sys.executable, "-c", command, "train", "c.yaml", "--set", "kk=3"],
            cwd=folder,
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        times.append(processor_time() - start)
        assert process.returncode == 2
        assert process.stdout == ""
        assert len(process.stderr.splitlines()) == 1
    assert min(times) < 3  # importing SAELens alone takes 5 or more
