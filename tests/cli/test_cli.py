import os
import subprocess
import sys
from argparse import ArgumentError
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import sae_lens
from cli_helpers import FLAGS, invoke

import sae_lens_matryoshka
from sae_lens_matryoshka import cli


def in_a_process(
    *arguments: str, code: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The console script in a process of its own; code runs when it is done."""
    script = (
        f"import sys; sys.argv[:] = {['sae-lens-matryoshka', *arguments]!r}\n"
        "from sae_lens_matryoshka.cli import main\n"
        "try:\n    main()\n"
        f"finally:\n    {code}"
    )
    package = Path(sae_lens_matryoshka.__file__).parent
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(package.parent), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


# ---- help


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["quickstart", "-h"], []])
def test_help_imports_nothing_heavy(arguments: list[str]):
    heavy = "{'torch', 'sae_lens', 'transformers', 'transformer_lens', 'numpy'}"
    done = in_a_process(*arguments, code=f"print('heavy:', {heavy} & set(sys.modules))")
    assert "Usage: sae-lens-matryoshka" in done.stdout + done.stderr
    assert "heavy: set()" in done.stdout


def test_a_missing_file_is_told_without_loading_sae_lens(tmp_path: Path):
    code = "print('sae_lens' in sys.modules)"
    done = in_a_process("train", "no.yaml", code=code, cwd=tmp_path)
    assert done.stdout == "False\n"
    assert done.stderr == "Error: There is no file no.yaml.\n"
    assert done.returncode == 2


def test_version():
    assert invoke("--version").stdout == f"{sae_lens_matryoshka.__version__}\n"


def test_installed_entry_points():
    try:
        entry_points = distribution("sae-lens-matryoshka").entry_points
    except PackageNotFoundError:
        pytest.skip("the package runs from its sources, it is not installed")
    (script,) = entry_points.select(group="console_scripts")
    assert (script.name, script.load()) == ("sae-lens-matryoshka", cli.main)
    (plugin,) = entry_points.select(group="sae_lens.plugins")
    assert (plugin.name, plugin.load()) == ("matryoshka", sae_lens_matryoshka.register)


@pytest.mark.parametrize(
    ("typer", "click", "works"),
    [("0.12.5", "8.1.8", True), ("0.12.5", "8.2.0", False), ("0.15.4", "8.5.1", True)],
)
def test_typer_and_click(
    typer: str,
    click: str,
    works: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    versions = {"typer": typer, "click": click}
    monkeypatch.setattr("sae_lens_matryoshka.cli.shell.version", versions.__getitem__)
    monkeypatch.setattr("sys.argv", ["sae-lens-matryoshka", "--version"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert (done.value.code in (0, None)) == works
    assert ("pip install 'click<8.2'" in capsys.readouterr().err) != works


# ---- a config file


def test_train_with_a_file_and_overrides(config_file: Path, runs: list[Any]):
    result = invoke("train", config_file, "--set", "sae.k=8", "--set", "lr=3e-4", "--set", "k=9")
    assert result.exit_code == 0
    assert runs[0].sae.k == 9
    assert runs[0].lr == 3e-4


def test_bad_settings_are_one_line_without_traceback(config_file: Path, runs: list[Any]):
    result = invoke("train", config_file, "--set", "kk=3")
    assert result.exit_code == 2
    assert not runs
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: --set kk=3: unknown key 'kk'. Did you mean 'k'?")
    assert "Traceback" not in result.stderr


def test_debug_shows_the_traceback(config_file: Path):
    assert isinstance(
        invoke("train", config_file, "--set", "kk=3", "--debug").exception, ValueError
    )


def test_nothing_to_train():
    result = invoke("train")
    assert result.exit_code == 2
    assert "Nothing to train. Give a config file" in result.stderr


def test_flags_beside_a_file(config_file: Path):
    result = invoke("train", config_file, "--lr", "3")
    assert result.exit_code == 2
    assert "Use --set KEY=VALUE" in result.stderr


# ---- SAELens's flags


def test_train_with_flags(runs: list[Any]):
    widths = ["--matryoshka_widths", "8", "16", "--level_weights", "1", "0.5", "1"]
    result = invoke("train", "--architecture", "matryoshka", *FLAGS, *widths, "--lr=1e-3")
    assert result.exit_code == 0, result.stderr
    config = runs[0]
    assert isinstance(config, sae_lens.LanguageModelSAERunnerConfig)
    assert config.sae.architecture() == "matryoshka"
    assert config.sae.widths == [8, 16, 64]
    assert config.sae.level_weights == [1, 0.5, 1]
    assert config.lr == 1e-3


def test_the_architecture_of_flags_is_ours_unless_given(runs: list[Any]):
    assert invoke("train", *FLAGS).exit_code == 0
    assert invoke("train", "--sae.dtype", "bfloat16", *FLAGS).exit_code == 0
    assert invoke("train", "--architecture", "topk", *FLAGS).exit_code == 0
    architectures = [config.sae.architecture() for config in runs]
    assert architectures == ["matryoshka", "matryoshka", "topk"]


def test_an_unknown_flag_names_the_nearest(runs: list[Any]):
    result = invoke("train", *FLAGS, "--matryoshka_widhts", "8")
    assert result.exit_code == 2
    assert not runs
    assert "unrecognized arguments: --matryoshka_widhts 8" in result.stderr
    assert "Did you mean --matryoshka_widths?" in result.stderr
    assert len(result.stderr) < 500


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("name", ["recipe", "lr_decay_to"])
def test_a_flag_that_only_files_have(name: str):
    result = invoke("train", *FLAGS, f"--{name}", "best")
    assert result.exit_code == 2
    assert f"{name} is no flag of SAELens: give it in a file" in " ".join(result.stderr.split())
    assert "Did you mean" not in result.stderr


def test_newer_pythons_raise_instead_of_exiting(monkeypatch: pytest.MonkeyPatch):
    def parse(_: list[str]) -> None:
        raise ArgumentError(None, "unrecognized arguments: --d_sea 8")

    monkeypatch.setattr("sae_lens.llm_sae_training_runner._parse_cfg_args", parse)
    assert "Did you mean --d_sae?" in invoke("train", "--d_sea", "8").stderr


@pytest.mark.parametrize(
    "flags",
    [
        ["--k", "many"],
        ["--k", "65"],
        ["--activation", "gelu"],
        # as the help says: what these mean goes into a file
        ["--training_tokens", "5e8"],
        ["--exclude_special_tokens", "1", "2"],
    ],
)
def test_flags_that_cannot_be_used(flags: list[str], runs: list[Any]):
    result = invoke("train", *FLAGS, *flags)
    assert result.exit_code == 2
    assert not runs
    assert flags[-1] in result.stderr
    assert "Traceback" not in result.stderr


def test_overrides_need_a_file():
    result = invoke("train", *FLAGS, "--set", "lr=1")
    assert result.exit_code == 2
    assert "Write --lr 1 instead." in result.stderr


def test_list_flags(capfd: pytest.CaptureFixture[str]):
    result = invoke("train", "--list-flags")
    assert result.exit_code == 0
    assert "--matryoshka_widths" in result.stdout + capfd.readouterr().out


@pytest.mark.skipif(find_spec("sae_bench") is not None, reason="the extra [bench] is installed")
def test_bench_without_its_extra_says_what_to_install(tmp_path: Path):
    path = tmp_path / "bench.yaml"
    path.write_text(
        "{model: {name: demo}, hook_name: blocks.1.hook_resid_post, text: {dataset: a/b}, "
        f"saes: [{{name: a, folder: b}}], evals: {{core: }}, output: {tmp_path / 'out'}}}"
    )
    result = invoke("bench", path)
    assert result.exit_code == 1
    assert 'pip install ".[bench]"' in " ".join(result.output.split())
    assert "Loading SAELens" not in result.output
