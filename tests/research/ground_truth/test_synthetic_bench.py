"""The comparison on a synthetic model: its numbers, what is kept, the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_helpers import invoke_ground_truth
from sae_lens import SAE
from sae_lens.synthetic import eval_sae_on_synthetic_data
from synthetic_helpers import ARMS, config, one_after_another, save_tiny_model, settings

from research.ground_truth import (
    joint_training as lockstep,
)
from research.ground_truth import (
    synthetic_bench,
)
from research.ground_truth import (
    unfinished_training as unfinished,
)
from research.ground_truth.random_state import OwnRandomness
from research.ground_truth.synth_sae_bench import load_model
from research.ground_truth.synthetic_bench import SeedTask, run
from research.ground_truth.synthetic_config import SyntheticConfig
from sae_lens_matryoshka.ownership import MARKER
from sae_lens_matryoshka.settings.yaml_file import ConfigError

Trained = list[tuple[int, tuple[str, ...]]]  # seeds and arms
CONFIGS = Path(__file__).parents[3] / "bench_configs"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Trained:
    """What is trained, in this process."""
    done: Trained = []
    train_seed = synthetic_bench.train_seed

    def noted(task: SeedTask, tell: Any) -> None:
        train_seed(task, tell)
        done.append((task.seed, task.arms))

    monkeypatch.setattr(synthetic_bench, "train_seed", noted)
    monkeypatch.setattr(synthetic_bench, "side_by_side", one_after_another)
    return done


def changed(comparison: SyntheticConfig, tmp_path: Path, **changes: Any) -> SyntheticConfig:
    return SyntheticConfig.model_validate(
        settings(tmp_path, output=str(comparison.output), **changes)
    )


@pytest.mark.usefixtures("trained")
def test_the_numbers_are_of_the_saved_sae_on_the_common_draw(tmp_path: Path):
    comparison = config(tmp_path)
    runs, _ = run(comparison, verbose=False)
    assert [(r.arm, r.seed) for r in runs] == [(a, s) for a in ARMS for s in (0, 1)]
    model = load_model(comparison.output / "model")
    for found in runs:
        sae = SAE.load_from_disk(comparison.output / "saes" / found.arm / f"seed_{found.seed}")
        with OwnRandomness(lockstep.EVALUATION).active():  # the draw, straight from the generator
            reference = eval_sae_on_synthetic_data(
                sae, model.feature_dict, model.activation_generator, 1_000, 128
            )
        measures = found.measures
        assert measures.f1 == pytest.approx(reference.classification.f1_score)
        assert measures.precision == pytest.approx(reference.classification.precision)
        assert measures.recall == pytest.approx(reference.classification.recall)
        assert measures.mcc == pytest.approx(reference.mcc)
        assert measures.uniqueness == pytest.approx(reference.uniqueness)
        assert measures.explained_variance == pytest.approx(reference.explained_variance)
        assert measures.l0 == pytest.approx(reference.sae_l0)
        assert measures.dead == reference.dead_latents / 32
    flat = next(found for found in runs if found.arm == "flat")
    # SAELens's running threshold lags after 16 steps, so its two forms of one SAE differ
    assert flat.measures.f1_in_training != pytest.approx(flat.measures.f1, abs=1e-3)


@pytest.mark.usefixtures("trained")
def test_what_comes_out(tmp_path: Path):
    comparison = config(tmp_path, baseline="flat")
    runs, text = run(comparison, verbose=False)
    assert (comparison.output / "results.md").read_text() == text
    assert "32 latents, k 3, trained on 2,000 samples" in text
    assert "SAE, less flat" in text
    written = json.loads((comparison.output / "results.json").read_text())
    assert written["config"]["arms"]["nested"]["matryoshka_widths"] == [4, 16]
    assert written["config"]["arms"]["nested"]["training"]["lr"] == 1e-3
    assert [entry["measures"]["f1"] for entry in written["runs"]] == [r.measures.f1 for r in runs]
    assert set(written["versions"]) == {"sae-lens-matryoshka", "sae-lens", "torch"}
    kept = json.loads((comparison.output / "runs" / "nested" / "seed_1.json").read_text())
    assert kept["configuration"]["sae"]["architecture"] == "matryoshka"
    assert kept["configuration"]["trainer"]["lr"] == 1e-3


def test_finished_runs_are_kept_and_changed_ones_trained_again(tmp_path: Path, trained: Trained):
    first = config(tmp_path)
    runs, text = run(first, verbose=False)
    assert trained == [(0, ("flat", "nested")), (1, ("flat", "nested"))]
    trained.clear()
    assert run(first, verbose=False) == (runs, text)
    assert trained == []

    arms = {**ARMS, "nested": {**ARMS["nested"], "matryoshka_widths": [8]}, "more": {}}
    run(changed(first, tmp_path, arms=arms, seeds=[1, 2], jobs=2), verbose=False)
    assert trained == [(1, ("nested", "more")), (2, ("flat", "nested", "more"))]
    trained.clear()
    again, _ = run(first, verbose=False)
    assert trained == [(1, ("nested",))]
    assert again == runs  # to the last digit, though trained in other company


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"eval_samples": 900}, [(0, ("flat", "nested"))]),
        ({"samples": 1_900}, [(0, ("flat", "nested"))]),
        ({"batch_size": 100}, [(0, ("flat", "nested"))]),
        ({"k": 4}, [(0, ("flat", "nested"))]),
        ({"lr": 0.01}, [(0, ("flat",))]),  # the other has its own
        ({"jobs": 2, "baseline": "flat"}, []),
    ],
)
def test_what_a_run_depends_on(
    tmp_path: Path,
    trained: Trained,
    change: dict[str, Any],
    again: Trained,
):
    first = config(tmp_path, seeds=[0])
    run(first, verbose=False)
    trained.clear()
    run(changed(first, tmp_path, seeds=[0], **change), verbose=False)
    assert trained == again


def test_another_model_is_another_comparison(tmp_path: Path, trained: Trained):
    comparison = config(tmp_path, seeds=[0])
    run(comparison, verbose=False)
    file = tmp_path / "tiny" / "synthetic_model_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "seed": 43}))
    trained.clear()
    run(comparison, verbose=False)
    assert trained == [(0, ("flat", "nested"))]


def test_what_was_finished_before_an_error_is_kept(
    tmp_path: Path,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
):
    comparison = config(tmp_path)
    measure = synthetic_bench.Judge.measure

    def interrupted(self: Any, sae: Any, folder: Path) -> Any:
        if folder.parts[-2:] == ("nested", "seed_1"):
            raise KeyboardInterrupt
        return measure(self, sae, folder)

    monkeypatch.setattr(synthetic_bench.Judge, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(comparison, verbose=False)
    monkeypatch.setattr(synthetic_bench.Judge, "measure", measure)
    trained.clear()
    run(comparison, verbose=False)
    assert trained == [(1, ("nested",))]


@pytest.mark.usefixtures("trained")
def test_an_interrupted_seed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    comparison = config(tmp_path, seeds=[3])
    reference = run(comparison, verbose=False)[0]
    interrupted = comparison.model_copy(update={"output": tmp_path / "interrupted"})
    monkeypatch.setattr(unfinished, "SECONDS_BETWEEN_SAVES", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(9, patch)
        run(interrupted, verbose=False)
    steps = count_steps(monkeypatch)
    for found, expected in zip(run(interrupted, verbose=False)[0], reference, strict=True):
        assert found.measures == expected.measures
    assert len(steps) == comparison.n_steps - 8
    assert not list((tmp_path / "interrupted" / "unfinished").iterdir())


@pytest.mark.usefixtures("trained")
def test_an_sae_that_is_finished_leaves_the_others_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed between the results of two SAEs, the training of the second is not done again."""
    comparison = config(tmp_path, seeds=[3])
    monkeypatch.setattr(unfinished, "SECONDS_BETWEEN_SAVES", 0.0)
    measure, calls = synthetic_bench.Judge.measure, iter(range(9))

    def measure_one(*args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(synthetic_bench.Judge, "measure", measure_one)
    with pytest.raises(KeyboardInterrupt):
        run(comparison, verbose=False)
    steps = count_steps(monkeypatch)
    run(comparison, verbose=False)
    assert not steps


@pytest.mark.usefixtures("trained")
def test_what_is_kept_of_another_configuration_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    first = config(tmp_path, seeds=[3])
    monkeypatch.setattr(unfinished, "SECONDS_BETWEEN_SAVES", 0.0)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(9, patch)
        run(first, verbose=False)
    steps = count_steps(monkeypatch)
    run(changed(first, tmp_path, seeds=[3], k=4), verbose=False)
    assert len(steps) == first.n_steps


@pytest.mark.usefixtures("trained")
def test_nothing_is_kept_before_it_is_due(tmp_path: Path):
    comparison = config(tmp_path, seeds=[3])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(9, patch)
        run(comparison, verbose=False)
    assert not (comparison.output / "unfinished").exists()


def interrupt_at(step: int, patch: pytest.MonkeyPatch) -> None:
    steps = count_steps(patch)
    counted = lockstep.Lockstep.step

    def interrupted(self: lockstep.Lockstep) -> None:
        counted(self)
        if len(steps) == step:
            raise KeyboardInterrupt

    patch.setattr(lockstep.Lockstep, "step", interrupted)


def count_steps(patch: pytest.MonkeyPatch) -> list[int]:
    step, done = lockstep.Lockstep.step, []

    def counted(self: lockstep.Lockstep) -> None:
        step(self)
        done.append(self.steps)

    patch.setattr(lockstep.Lockstep, "step", counted)
    return done


def test_numbers_do_not_outlive_the_sae_that_they_are_of(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
):
    first = config(tmp_path, seeds=[0], arms={"flat": ARMS["flat"]})
    run(first, verbose=False)
    measure = synthetic_bench.Judge.measure

    def interrupted_after_saving(self: Any, sae: Any, folder: Path) -> Any:
        measure(self, sae, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic_bench.Judge, "measure", interrupted_after_saving)
    with pytest.raises(KeyboardInterrupt):
        run(first.model_copy(update={"samples": 1_000}), verbose=False)
    monkeypatch.setattr(synthetic_bench.Judge, "measure", measure)
    trained.clear()
    run(first, verbose=False)
    assert trained == [(0, ("flat",))]


@pytest.mark.parametrize("name", ["saes/flat/seed_0", "model", "unfinished", "runs"])
def test_a_users_files_in_the_output_folder_stay(tmp_path: Path, trained: Trained, name: str):
    comparison = config(tmp_path, seeds=[0])
    mine = comparison.output / name / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=f"already holds {name.split('/')[0]}"):
        run(comparison, verbose=False)
    assert mine.read_text() == "mine"
    assert trained == []


def test_a_users_file_in_the_folder_of_an_sae_stays(tmp_path: Path, trained: Trained):
    first = config(tmp_path, seeds=[0])
    run(first, verbose=False)
    mine = first.output / "saes" / "flat" / "seed_0" / "notes.md"
    mine.write_text("mine")
    trained.clear()
    run(first, verbose=False)  # nothing is trained
    with pytest.raises(ConfigError, match="notes.md"):
        run(changed(first, tmp_path, seeds=[0], k=4), verbose=False)
    assert mine.read_text() == "mine"
    assert trained == []


def test_a_foreign_result_is_named(tmp_path: Path, trained: Trained):
    comparison = config(tmp_path, seeds=[0])
    run(comparison, verbose=False)
    for foreign in ("[]", "{}", "not JSON"):
        (comparison.output / "runs" / "flat" / "seed_0.json").write_text(foreign)
        with pytest.raises(ConfigError, match="seed_0.json is no result"):
            run(comparison, verbose=False)
    del trained


def test_results_of_a_version_without_markers_are_used(tmp_path: Path, trained: Trained):
    comparison = config(tmp_path, seeds=[0])
    expected = run(comparison, verbose=False)
    for marker in list(comparison.output.rglob(MARKER)):
        marker.unlink()
    trained.clear()
    assert run(comparison, verbose=False) == expected
    assert trained == []
    run(changed(comparison, tmp_path, seeds=[0], k=4), verbose=False)
    assert trained == [(0, ("flat", "nested"))]


def test_the_command(tmp_path: Path, trained: Trained):
    save_tiny_model(tmp_path / "tiny")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)))
    done = invoke_ground_truth(path, "--set", "seeds=[5]", "--set", "arms.nested.tilt=null")
    assert done.exit_code == 0, done.output
    assert trained == [(5, ("flat", "nested"))]
    *lines, end = done.stdout.splitlines()
    table = [line for line in lines if str(tmp_path) not in line]
    assert max(map(len, table)) <= 80  # where there is no terminal
    parts = [line for line in lines if line.startswith("nested ")]
    measures = (tmp_path / "out" / "results.md").read_text().split("| nested |")[1].splitlines()[0]
    shown = [cell for line in parts for cell in line.split()[1:]]
    assert len(parts) > 1 and shown == measures.replace("|", " ").split()
    assert "One seed." in done.stdout
    assert end.startswith(f"Everything is in {tmp_path / 'out'}: results.md")
    again = invoke_ground_truth(path, "--set", "seeds=[5]")
    assert "2 of 2 SAEs are finished" in again.output


def test_a_wrong_key_is_shown_without_a_traceback(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, model="mini", arms={"a": {"kk": 2}})))
    done = invoke_ground_truth(path)
    assert done.exit_code == 2
    assert "arms.a: unknown key 'kk'" in done.stderr


@pytest.mark.slow
def test_processes_of_their_own_give_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    comparison = config(tmp_path, jobs=2)
    runs, _ = run(comparison, verbose=False)
    monkeypatch.setattr(synthetic_bench, "side_by_side", one_after_another)
    here = changed(comparison, tmp_path, jobs=1).model_copy(update={"output": tmp_path / "here"})
    for found, reference in zip(runs, run(here, verbose=False)[0], strict=True):
        assert found.measures.f1 == pytest.approx(reference.measures.f1, abs=1e-3)
        assert found.measures.mcc == pytest.approx(reference.measures.mcc, abs=1e-4)
