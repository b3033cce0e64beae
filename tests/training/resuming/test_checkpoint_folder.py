"""Which checkpoints of a folder are complete, and which is the newest."""

import os
from pathlib import Path

import pytest
from runner_helpers import (
    make_runner,
    tidy_process,  # noqa: F401  (a fixture of every test here)
)

from sae_lens_matryoshka.training.resuming.checkpoint_folder import (
    STOCK_FILENAMES,
    checkpoints_below,
    damage,
    newest_complete,
)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runner = make_runner(
        tmp_path_factory.mktemp("run"), n_checkpoints=3, save_final_checkpoint=True
    )
    runner.run()
    assert runner.checkpoint_path is not None
    return runner.checkpoint_path


@pytest.fixture
def run(run_folder: Path, tmp_path: Path) -> Path:
    for source in run_folder.rglob("*"):
        if source.is_file():
            target = tmp_path / "checkpoints" / "one" / source.relative_to(run_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
    return tmp_path / "checkpoints" / "one"


def test_the_newest_has_the_most_tokens(run: Path):
    assert [path.name for path in checkpoints_below(run)] == ["final_768", "608", "416", "224"]
    assert newest_complete(run) == run / "final_768"
    assert newest_complete(run / "224") is None


def test_of_several_runs_the_last_one_counts(run: Path):
    other = run.with_name("other")
    (run / "416").rename(other)
    (other / "x").mkdir()
    for file in other.iterdir():
        if file.is_file():
            file.rename(other / "x" / file.name)
    later = (run / "final_768" / "trainer_state.pt").stat().st_mtime + 60
    os.utime(other / "x" / "trainer_state.pt", (later, later))
    assert newest_complete(run.parent) == other / "x"


@pytest.mark.parametrize("name", [*STOCK_FILENAMES, "runner_cfg.json", "matryoshka_state.pt"])
def test_a_torn_file_is_named(run: Path, name: str):
    checkpoint = run / "final_768"
    assert damage(checkpoint) is None
    whole = (checkpoint / name).read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 0):
        (checkpoint / name).write_bytes(whole[:length])
        assert f"is damaged: {name} ({length} bytes)" in str(damage(checkpoint))
    assert newest_complete(run) == run / "608"
    (checkpoint / name).unlink()
    if name in STOCK_FILENAMES:
        assert damage(checkpoint) == f"lacks {name}"
