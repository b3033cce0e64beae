"""The command line in this process."""

import shlex
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sae_lens_matryoshka import cli

FLAGS = shlex.split(
    "--d_in 16 --d_sae 64 --k 4 --model_name gpt2 --hook_name blocks.0.hook_resid_post "
    "--dataset_path some/dataset --verbose False"
)


def invoke(*arguments: Any) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def invoke_ground_truth(*arguments: Any) -> Result:
    from research.ground_truth.__main__ import app

    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    class Runner:
        def __init__(self, _: Any):
            pass

        def run(self) -> None:
            raise error

    monkeypatch.setattr("sae_lens_matryoshka.training.runner.MatryoshkaSAETrainingRunner", Runner)
