"""Tasks in processes of their own."""

import time
from pathlib import Path

import pytest
from slow_counting import count, fail_or_go_on

from research.ground_truth.parallel_tasks import side_by_side


@pytest.mark.slow
def test_all_are_done_and_counted(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    files = [tmp_path / str(i) for i in range(4)]
    side_by_side(count, files, 2, n_steps=12, verbose=True)
    assert all(file.read_text() == "done" for file in files)
    assert "12/12" in capfd.readouterr().err


@pytest.mark.slow
def test_an_error_stops_the_others(tmp_path: Path):
    start = time.monotonic()
    with pytest.raises(ValueError, match="no such thing"):
        files = [tmp_path / name for name in ("a", "fails", "b", "c")]
        side_by_side(fail_or_go_on, files, 2, n_steps=1, verbose=False)
    assert time.monotonic() - start < 45  # each of the others takes a minute
    assert not list(tmp_path.iterdir())


def test_nothing_to_do():
    side_by_side(count, [], 2, n_steps=0, verbose=False)
