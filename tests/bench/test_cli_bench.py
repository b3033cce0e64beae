"""The command, as a newcomer meets it."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from cli_helpers import invoke
from typer.testing import Result


@pytest.fixture
def path(settings: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "bench.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def said(result: Result) -> str:
    return " ".join(result.output.split())


def test_help_says_what_it_does():
    result = invoke("bench", "--help")
    assert result.exit_code == 0
    assert "every nested level, several seeds, one table" in said(result)


def test_errors_are_one_paragraph_and_exit_with_two(path: Path, tmp_path: Path):
    missing = invoke("bench", tmp_path / "bnch.yaml")
    assert missing.exit_code == 2
    assert "Did you mean" in said(missing)
    assert "bench.yaml" in said(missing)
    wrong = invoke("bench", path, "--set", "sedes=[1]")
    assert wrong.exit_code == 2
    assert "sedes: unknown key. Did you mean 'seeds'?" in said(wrong)
    assert "Traceback" not in wrong.output
    other = invoke("bench", path, "--only", "tpp")
    assert other.exit_code == 2
    assert "--only tpp: the config has no such eval." in said(other)
    form = invoke("bench", path, "--set", "seeds")
    assert form.exit_code == 2
    assert "KEY=VALUE" in said(form)


@pytest.mark.slow
def test_one_file_in_a_table_out(path: Path, tmp_path: Path):
    arguments = [
        "--set",
        "evals.core.n_eval_reconstruction_batches=1",
        "--set",
        "saes.0.levels=[0]",
    ]
    result = invoke("bench", path, *arguments)
    assert result.exit_code == 0, result.output
    assert "nested 0 16" in said(result)
    assert "Cross-entropy of the language model" in result.output
    assert "demo, blocks.1.hook_resid_post" in result.output
    assert "sae-bench 0.6.0" in result.output
    printed = result.output[
        result.output.index("Reconstruction") : result.output.index("Everything")
    ]
    assert max(map(len, printed.splitlines())) <= 80  # where there is no terminal
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| nested | 0 (innermost) |" in table
    assert str(tmp_path / "out") in result.output and "results.md" in result.output
