"""Whole benchmarks, small: SAEBench's numbers, shared caches, resumption, repeatability, bad input."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from bench_helpers import HOOK, WIDTHS, random_sae, refined_sae, rescaled
from safetensors.torch import load_file, save_file

from sae_lens_matryoshka.bench import BenchReport, checked_config, run
from sae_lens_matryoshka.bench.config import BenchConfig
from sae_lens_matryoshka.bench.inputs.saes import open_sae
from sae_lens_matryoshka.bench.jobs import suite
from sae_lens_matryoshka.bench.jobs.output import claim_output
from sae_lens_matryoshka.bench.outcome import Outcome
from sae_lens_matryoshka.demo.model import MODEL_FOLDER
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.ownership import new_scratch, replaced_folder
from sae_lens_matryoshka.settings.yaml_file import ConfigError

BIOS = "LabHC/bias_in_bios_class_set1"
EVALS: dict[str, dict[str, Any]] = {
    "sparse_probing": {
        "dataset_names": [BIOS],
        "probe_train_set_size": 200,
        "probe_test_set_size": 100,
        "k_values": [1, 5],
    },
    "tpp": {
        "dataset_names": [BIOS],
        "train_set_size": 200,
        "test_set_size": 100,
        "n_values": [2, 20],
    },
    "scr": {
        "dataset_names": [BIOS],
        "train_set_size": 200,
        "test_set_size": 100,
        "n_values": [2, 20],
        "column1_vals_lookup": {BIOS: [["professor", "nurse"]]},
    },
    "sae_probes": {"dataset_names": ["96_spam_is"], "ks": [1, 5]},
    "core": {
        "dataset": "demo/heldout_text",
        "n_eval_reconstruction_batches": 1,
        "n_eval_sparsity_variance_batches": 1,
    },
}
BIOGRAPHIES = ("sparse_probing", "tpp", "scr")
ABSORPTION = {"max_k_value": 2, "precalc_k_sparse_probe_sae_acts": True}
KEY = {
    "sparse_probing": "sae_top_5_test_accuracy",
    "tpp": "tpp_threshold_2_total_metric",
    "scr": "scr_metric_threshold_2",
    "absorption": "mean_absorption_fraction_score",
}


def base(folder: Path, data: Path, saes: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Settings with these SAEs, saved."""
    for name, sae in saes.items():
        if not (folder / name).exists():
            sae.save_model(folder / name)
    return {
        "model": {"name": "demo", "device": "cpu"},
        "hook_name": HOOK,
        "saes": [{"name": name, "folder": str(folder / name)} for name in saes],
        "evals": EVALS,
        "seeds": [0],
        "text": {"dataset": "demo/heldout_text", "context_size": 64, "sequences": 16},
        "data": str(data),
        "output": str(folder / "out"),
        "jobs": 2,
        **more,
    }


def test_each_seed_of_a_demo_sae_is_trained_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    trained: list[tuple[str, int]] = []

    def train(_config: BenchConfig, which: str, seed: int, folder: Path) -> None:
        trained.append((which, seed))
        random_sae(seed=seed).save_model(folder)

    monkeypatch.setattr(suite, "_train_demo_sae", train)
    settings = base(tmp_path, tmp_path, {})
    settings["saes"] = [
        {"name": "a", "demo": "best"},
        {"name": "b", "demo": "best", "seed": 1, "levels": "outermost"},
        {"name": "c", "demo": "best", "seed": 0},
        {"name": "d", "demo": "batchtopk", "seed": 1},
    ]
    config = checked_config(settings)
    for _ in range(2):  # the second time they are there
        suite._prepare_demo(config)
        assert sorted(trained) == [("batchtopk", 1), ("best", 0), ("best", 1)]
    for source, seed in zip(config.saes, (0, 1, 0, 1), strict=True):
        opened = open_sae(source, config.demo_saes)
        assert torch.equal(opened.W_dec, random_sae(seed=seed).W_dec)


def found(report: BenchReport, sae: str, level: int, name: str, seed: int | None = 0) -> Outcome:
    [outcome] = [
        o for o in report.outcomes if (o.sae, o.level, o.eval, o.seed) == (sae, level, name, seed)
    ]
    return outcome


def rows(output: Path) -> list[dict[str, str]]:
    """The CSV file without the times."""
    with (output / "results.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suite")


@pytest.fixture(scope="module")
def saes() -> dict[str, Any]:
    nested = random_sae(widths=WIDTHS)
    return {
        "nested": nested,
        "rescaled": rescaled(nested),
        "by_hand": MatryoshkaSAE(nested, WIDTHS).truncate(WIDTHS[1]),
    }


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's model with random weights."""
    model = shutil.copytree(MODEL_FOLDER, tmp_path_factory.mktemp("model") / "random")
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    noise = {
        key: (0.02 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
        for key, tensor in weights.items()
    }
    save_file(noise, model / "model.safetensors", metadata={"format": "pt"})
    return model


@pytest.fixture(scope="module")
def report(folder: Path, data_folder: Path, saes: dict[str, Any]) -> BenchReport:
    return run(base(folder, data_folder, saes, baseline="by_hand"), verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVALS)
def test_the_numbers_are_saebenchs_own(
    report: BenchReport, name: str, folder: Path, data_folder: Path, tmp_path: Path
):
    model = shutil.copytree(MODEL_FOLDER, tmp_path / "neutral")
    random_sae(seed=9, d_sae=40).save_model(tmp_path / "warming")
    (tmp_path / "fields.json").write_text(json.dumps(EVALS[name]))
    for owner in data_folder.iterdir():
        (tmp_path / owner.name).symlink_to(owner)
    script = Path(__file__).with_name("saebench_directly.py")
    arguments = [name, "fields.json", str(folder / "nested"), str(model), "warming"]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=tmp_path,
        env={
            **os.environ,
            "HF_DATASETS_CACHE": str(tmp_path / "cache"),
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    direct = json.loads((tmp_path / "result.json").read_text())["eval_result_metrics"]
    expected = {k: v for category in direct.values() for k, v in category.items() if v is not None}
    ours = found(report, "nested", 2, name, None if name == "core" else 0).metrics
    assert len(expected) >= 4
    # nan: neither side has a number where core wrote -1
    shared = {key: math.nan if name == "core" and v == -1 else v for key, v in expected.items()}
    assert {key: ours[key] for key in shared} == pytest.approx(shared, abs=1e-6, nan_ok=True)


@pytest.mark.slow
def test_everything_is_measured(report: BenchReport):
    assert not report.failed
    assert {o.status for o in report.outcomes} == {"done", "not applicable"}
    for name in ("tpp", "scr"):
        level = found(report, "nested", 0, name)
        assert level.reason == f"{name} needs 20 latents, the level has 16"
    for level in range(3):
        fidelity = found(report, "nested", level, "fidelity", None).metrics
        assert 0 < fidelity["l0"] <= WIDTHS[level]
        assert fidelity["fvu"] > 0


@pytest.mark.slow
def test_a_rescaled_sae_scores_the_same(report: BenchReport):
    for name in BIOGRAPHIES:
        original = found(report, "nested", 2, name).metrics
        assert found(report, "rescaled", 2, name).metrics == pytest.approx(original, abs=0.011)
        assert any(abs(value) > 0.02 for value in original.values())


@pytest.mark.slow
def test_a_level_scores_as_the_sae_cut_by_hand(report: BenchReport):
    for name in EVALS:
        seed = None if name == "core" else 0
        by_hand = found(report, "by_hand", 1, name, seed).metrics
        assert by_hand
        assert found(report, "nested", 1, name, seed).metrics == by_hand


@pytest.mark.slow
def test_random_directions_do_not_beat_the_models_own(report: BenchReport):
    probing = found(report, "nested", 2, "sparse_probing").metrics
    assert probing["sae_top_1_test_accuracy"] < probing["llm_top_1_test_accuracy"] + 0.03
    assert probing["sae_top_5_test_accuracy"] < probing["llm_top_5_test_accuracy"] + 0.03


@pytest.mark.slow
def test_a_random_sae_of_a_random_model_is_at_chance_where_labels_mean_nothing(
    folder: Path, data_folder: Path, saes: dict[str, Any], random_model: Path, tmp_path: Path
):
    """What leaks from train into test, or from a label into a text, would show."""
    data = shutil.copytree(data_folder, tmp_path / "data")
    for part in ("train", "test"):
        path = data / "LabHC" / "bias_in_bios" / f"{part}.parquet"
        table = pd.read_parquet(path)
        table["profession"] = table["profession"].sample(frac=1, random_state=0).to_numpy()
        table.to_parquet(path)
    settings = base(folder, data, {"nested": saes["nested"]}, output=str(tmp_path / "out"))
    settings["model"] = {"folder": str(random_model), "device": "cpu"}
    settings["saes"][0]["levels"] = [2]
    settings["evals"] = {name: EVALS[name] for name in ("sparse_probing", "tpp")}
    settings["evals"]["sparse_probing"] = {**EVALS["sparse_probing"], "probe_test_set_size": 200}
    at_chance = run(settings, verbose=False)
    probing = found(at_chance, "nested", 2, "sparse_probing").metrics
    for key, value in probing.items():
        assert value == pytest.approx(0.5, abs=0.05), key  # five classes of 200 texts
    tpp = found(at_chance, "nested", 2, "tpp").metrics
    for n in (2, 20):
        assert tpp[f"tpp_threshold_{n}_total_metric"] == pytest.approx(0, abs=0.06)


@pytest.mark.slow
def test_what_comes_out(report: BenchReport, folder: Path):
    output = folder / "out"
    for name in BIOGRAPHIES:
        trees = sorted(path.name for path in (output / "saebench" / name / "seed_0").iterdir())
        assert "nested__level_2_width_160_custom_sae_eval_results.json" in trees
        content = json.loads((output / "saebench" / name / "seed_0" / trees[0]).read_text())
        assert content["eval_config"]["random_seed"] == 0
        assert content["sae_bench_commit_hash"] == "Unknown"  # not that of a repository above
    assert (output / "results.md").read_text() == report.markdown
    assert "| nested" in report.markdown
    assert "2605.18229" in report.markdown
    assert (output / "plots" / "plots.html").stat().st_size > 1e6
    assert list((output / "plots").glob("*.png"))
    assert not (output / "work").exists() or not any((output / "work").iterdir())
    record = json.loads((output / "run.json").read_text())
    assert record["versions"]["sae-bench"]
    assert len(record["fingerprints"]["model"]) == 64
    assert set(record["fingerprints"]["saes"]) == {"nested", "rescaled", "by_hand"}
    assert all(job["wall_seconds"] > 1 for job in record["jobs"])


@pytest.mark.slow
def test_nothing_is_run_twice_and_the_callers_things_stay(
    report: BenchReport,
    folder: Path,
    data_folder: Path,
    saes: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    before = rows(folder / "out")
    start = time.monotonic()
    again = run(base(folder, data_folder, saes, baseline="by_hand"), verbose=False)
    assert time.monotonic() - start < 20  # no worker was started
    assert rows(folder / "out") == before
    assert again.markdown == report.markdown
    assert not list(tmp_path.iterdir())
    some = run(base(folder, data_folder, saes, baseline="by_hand"), only=["tpp"], verbose=False)
    assert some.markdown == report.markdown  # what is finished of the others is shown


@pytest.mark.slow
def test_another_seed_changes_numbers_and_a_changed_sae_is_rerun(
    report: BenchReport, folder: Path, data_folder: Path, saes: dict[str, Any]
):
    first = found(report, "nested", 2, "sparse_probing")
    settings = base(folder, data_folder, saes, seeds=[0, 1])
    settings["evals"] = {"sparse_probing": EVALS["sparse_probing"]}
    changed = saes["by_hand"]
    changed.threshold.data *= 2
    changed.save_model(folder / "by_hand")
    both = run(settings, verbose=False)
    assert found(both, "nested", 2, "sparse_probing", 0) == first
    other = found(both, "nested", 2, "sparse_probing", 1).metrics
    assert other != first.metrics
    before = found(report, "by_hand", 1, "sparse_probing").metrics
    assert found(both, "by_hand", 1, "sparse_probing", 0).metrics != before
    assert " ± " in both.markdown


@pytest.mark.slow
def test_a_killed_suite_goes_on_to_the_same_table(
    report: BenchReport, folder: Path, data_folder: Path, saes: dict[str, Any]
):
    del report
    settings = base(folder, data_folder, {"nested": saes["nested"]}, jobs=1)
    settings["evals"] = {"tpp": EVALS["tpp"]}
    whole = {**settings, "output": str(folder / "whole")}
    run(whole, verbose=False)
    output = folder / "killed"
    path = folder / "killed.json"
    path.write_text(json.dumps({**settings, "output": str(output)}))
    command = [
        sys.executable,
        "-c",
        "import sys; from sae_lens_matryoshka.cli import main; main()",
        "bench",
        str(path),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(output.glob("jobs/tpp*/nested__level_1*/status.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(2)  # its worker notices
    assert not list(output.glob("jobs/tpp*/nested__level_2*/status.json"))
    [kept] = output.glob("jobs/tpp*/nested__level_1*/status.json")
    written = kept.stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert rows(output) == rows(folder / "whole")
    assert kept.stat().st_mtime_ns == written  # what was finished was not run again
    assert "Targeted probe perturbation" in done.stdout


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_the_rest_goes_on(
    folder: Path, data_folder: Path, saes: dict[str, Any]
):
    settings = base(folder, data_folder, {"nested": saes["nested"]}, jobs=1)
    settings["evals"] = {"sparse_probing": EVALS["sparse_probing"]}
    output = folder / "worker-killed"
    settings["output"] = str(output)
    watcher = subprocess.Popen(
        [sys.executable, "-c", KILL_THE_WORKER, str(output), "nested__level_0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        report = run(settings, verbose=False)
        assert watcher.communicate(timeout=10)[0].strip() == "killed"
    finally:
        watcher.kill()
    broken = found(report, "nested", 0, "sparse_probing")
    assert broken.status == "failed"
    assert broken.reason.startswith("the process was killed by SIGKILL; the log ends: ")
    assert found(report, "nested", 1, "sparse_probing").status == "done"
    assert found(report, "nested", 2, "sparse_probing").status == "done"
    assert "SIGKILL" in report.markdown
    assert not run(settings, verbose=False).failed  # the same command tries again


KILL_THE_WORKER = """
import json, os, pathlib, signal, sys, time
output, name = pathlib.Path(sys.argv[1]), sys.argv[2]
while True:
    for current in output.glob("work/sparse_probing*/current.json"):
        if name in json.loads(current.read_text())["folder"]:
            for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    line = entry.read_bytes()
                except OSError:
                    continue
                words = line.split(bytes(1))  # this script's own text names the worker as well
                if b"sae_lens_matryoshka.bench.jobs.worker" in words and str(output).encode() in line:
                    os.kill(int(entry.parent.name), signal.SIGKILL)
                    print("killed")
                    sys.exit()
    time.sleep(0.01)
"""


@pytest.mark.slow
def test_absorption_that_is_built_in_is_seen(folder: Path, data_folder: Path):
    """And where it is: the letter whose words have latents of their own, no other."""
    from absorbing_sae import LETTER, build

    saes = {"absorbs": build(True), "does_not": build(False)}
    settings = base(folder, data_folder, saes, output=str(folder / "absorbs-out"))
    settings["evals"] = {"absorption": ABSORPTION}
    report = run(settings, verbose=False)
    assert not report.failed
    by_letter = {
        name: {d["first_letter"]: d for d in found(report, name, 0, "absorption").details}
        for name in saes
    }
    assert len(by_letter["does_not"]) >= 20
    for key in ("mean_absorption_fraction", "full_absorption_rate"):
        assert by_letter["absorbs"][LETTER][key] > 0.08
        assert by_letter["does_not"][LETTER][key] < 0.03
        for letter, detail in by_letter["absorbs"].items():
            if letter != LETTER:
                assert detail[key] < 0.08


@pytest.mark.slow
def test_absorption_is_the_same_twice_and_follows_its_seed(
    folder: Path, data_folder: Path, saes: dict[str, Any]
):
    import sae_bench

    settings = base(folder, data_folder, {"nested": saes["nested"]})
    settings["evals"] = {"absorption": ABSORPTION}
    settings["saes"][0]["levels"] = [1]
    a = run({**settings, "output": str(folder / "absorption-a")}, verbose=False)
    both = {**settings, "output": str(folder / "absorption-b"), "seeds": [0, 1]}
    b = run(both, verbose=False)
    assert not a.failed + b.failed
    results = [found(report, "nested", 1, "absorption") for report in (a, b)]
    assert results[0].metrics == results[1].metrics
    assert results[0].details == results[1].details
    assert found(b, "nested", 1, "absorption", 1).metrics != results[0].metrics
    assert not list(Path(sae_bench.__file__).parent.rglob("artifacts"))
    assert len(results[0].details) >= 20
    assert 0 < results[0].metrics[KEY["absorption"]] < 1
    path = next((folder / "absorption-a").glob("saebench/absorption/seed_0/*.json"))
    config = json.loads(path.read_text())["eval_config"]
    steps = config["k_sparse_probe_num_epochs"] * math.ceil(
        2800 / config["k_sparse_probe_batch_size"]
    )
    assert steps >= 1000


@pytest.mark.slow
def test_a_model_that_cannot_spell_is_not_measurable(
    folder: Path, data_folder: Path, saes: dict[str, Any], random_model: Path, tmp_path: Path
):
    settings = base(folder, data_folder, {"nested": saes["nested"]}, jobs=1)
    settings["model"] = {"folder": str(random_model), "device": "cpu"}
    settings["saes"][0]["levels"] = [1]
    settings["evals"] = {"absorption": ABSORPTION}
    report = run({**settings, "output": str(tmp_path / "out")}, verbose=False)
    outcome = found(report, "nested", 1, "absorption")
    assert outcome.status == "not measurable"
    assert "letters, of 20 needed" in outcome.reason
    assert outcome.reason in report.markdown


def test_bad_input_is_refused_before_anything_runs(
    settings: dict[str, Any], tmp_path: Path, sae_folder: Path
):
    def fails(match: str, **change: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            run({**settings, **change}, verbose=False)
        assert not list(Path(settings["output"]).glob("jobs/*"))

    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    fails("is no language model", model={"folder": str(tmp_path)})
    fails("holds no SAE", saes=[{"name": "a", "folder": str(tmp_path)}])
    fails("holds no no/such", text={"dataset": "no/such"})
    fails("holds no demo/heldout_text", data=str(tmp_path / "data"))
    fails("was trained on", hook_name="blocks.0.hook_resid_post")
    nested = {"name": "a", "folder": str(sae_folder)}
    fails(r"levels \[7\] do not exist", saes=[{**nested, "levels": [7]}])
    fails("cannot be written to", output=str(tmp_path / "file" / "out"))


@pytest.mark.slow
def test_a_wrong_hook_and_a_wrong_size_stop_the_suite(settings: dict[str, Any], tmp_path: Path):
    from sae_lens_matryoshka.saes.inference_sae import build

    nowhere = random_sae(hook_name="blocks.7.hook_resid_post")
    nowhere.save_model(tmp_path / "nowhere")
    settings["saes"] = [{"name": "a", "folder": str(tmp_path / "nowhere")}]
    with pytest.raises(ConfigError, match="has no hook 'blocks.7.hook_resid_post'. Did you mean"):
        run({**settings, "hook_name": "blocks.7.hook_resid_post"}, verbose=False)
    wide = random_sae()
    wide.cfg.d_in = 100
    wide = build(type(wide), wide.cfg, {k: cut_to(v, 100) for k, v in wide.state_dict().items()})
    wide.save_model(tmp_path / "wide")
    settings["saes"] = [{"name": "a", "folder": str(tmp_path / "wide")}]
    with pytest.raises(ConfigError, match="has 256 numbers per token, but SAE 'a' reads 100"):
        run(settings, verbose=False)


@pytest.mark.slow
def test_an_sae_of_this_packages_own_architecture(data_folder: Path, tmp_path: Path):
    """By the command, so that neither it nor its workers know the architecture without being told."""
    chosen = {name: EVALS[name] for name in ("core", "sparse_probing")}
    settings = base(tmp_path, data_folder, {"refined": refined_sae()}, evals=chosen)
    (tmp_path / "bench.yaml").write_text(json.dumps(settings))
    arguments = ["sae-lens-matryoshka", "bench", str(tmp_path / "bench.yaml")]
    code = f"import sys; sys.argv = {arguments!r}\nfrom sae_lens_matryoshka.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = {(row["level"], row["metric"]) for row in rows(tmp_path / "out")}
    assert {level for level, _ in measured} == {"0", "1", "2"}
    assert ("0", "sae_top_5_test_accuracy") in measured


def cut_to(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """Every dimension of the model's width cut to another."""
    for dim, length in enumerate(tensor.shape):
        if length == 256:
            tensor = tensor.narrow(dim, 0, size)
    return tensor.contiguous()


@pytest.mark.parametrize("name", ["work", "plots", "saebench", "results.md", "run.json", "demo"])
def test_a_users_files_in_the_output_folder_stop_the_benchmark(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.chdir(tmp_path)
    mine = tmp_path / name if "." in name else tmp_path / name / "clone" / "mine.txt"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("mine")
    before = {str(path) for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=f"{tmp_path} already holds {name}"):
        run({**settings, "output": "."}, verbose=False)
    assert mine.read_text() == "mine"
    assert {str(path) for path in tmp_path.rglob("*")} == before | {str(tmp_path / ".lock")}


def test_only_the_benchmarks_own_caches_are_removed(settings: dict[str, Any]):
    config = checked_config(settings)
    clone, cache = (config.output / "work" / name for name in ("clone", "tpp-seed0-1234"))
    claim_output(config.output)
    clone.mkdir(parents=True)
    (clone / "mine.txt").write_text("mine")
    (config.output / "work" / "mine.txt").write_text("mine")
    new_scratch(cache)
    (cache / "cwd").mkdir()
    (cache / "cwd" / "LabHC").symlink_to(clone)
    suite._remove_old_work(config, [])
    assert not cache.exists()
    assert (clone / "mine.txt").exists()
    assert (config.output / "work" / "mine.txt").exists()


def test_a_users_file_among_the_plots_stops_the_benchmark(settings: dict[str, Any]):
    output = checked_config(settings).output
    claim_output(output)
    write_plots_of(output)
    (output / "plots" / "mine.png").write_text("mine")
    with pytest.raises(ConfigError, match=r"plots would be replaced.*: mine.png"):
        run(settings, verbose=False)
    assert (output / "plots" / "mine.png").read_text() == "mine"


def write_plots_of(output: Path) -> None:
    with replaced_folder(output / "plots") as staging:
        (staging / "plots.html").write_text("ours")


def test_only_names_must_be_in_the_config(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="--only tpp: the config has no such eval.*core"):
        run(settings, only=["tpp"])


def test_two_benchmarks_do_not_share_a_folder(settings: dict[str, Any]):
    from filelock import FileLock

    output = checked_config(settings).output
    output.mkdir(parents=True)
    with (
        FileLock(output / ".lock"),
        pytest.raises(RuntimeError, match="Another benchmark is running"),
    ):
        run(settings, verbose=False)
