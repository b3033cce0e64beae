"""What docs/ says: its examples run, its commands and files are accepted, its reference is whole."""

import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import ismodule
from pathlib import Path

import pytest
import torch
import typer
from runner_helpers import tidy_process  # noqa: F401  (a fixture of every test here)
from sae_lens.saes.sae import SAEMetadata, TrainStepInput

import sae_lens_matryoshka as slm
from research.ground_truth.synthetic_config import SyntheticConfig
from research.ground_truth.toy_bench import ToyTreeConfig
from sae_lens_matryoshka import cli
from sae_lens_matryoshka.bench import checked_config as checked_bench_config
from sae_lens_matryoshka.settings.strict_models import validated
from sae_lens_matryoshka.settings.yaml_file import parse_override, read_mapping, read_settings
from sae_lens_matryoshka.training.settings import from_file as config_check

GROUND_TRUTH = {"toy_tree": ToyTreeConfig, "synthetic": SyntheticConfig}
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in sorted(DOCS.rglob("*.md"))}
README = {"README.md": (ROOT / "README.md").read_text()}  # its examples need a network

FENCE = re.compile(
    r"^(?:<!-- not run: (?P<excuse>[^\n]+) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; excuse says why an example is not run."""

    language: str
    text: str
    line: int
    excuse: str | None


def blocks(page: str, *languages: str) -> list[Block]:
    text = (PAGES | README)[page]
    found = [
        Block(m["language"], m["text"], text.count("\n", 0, m.start("text")), m["excuse"])
        for m in FENCE.finditer(text)
    ]
    assert 2 * len(found) == len(re.findall("^ *```", text, re.MULTILINE)), "a fence is not closed"
    return [block for block in found if block.language in languages]


def pages_with(*languages: str) -> list[str]:
    return [page for page in PAGES if blocks(page, *languages)]


# ---- examples


@pytest.fixture(scope="module")
def quickstart_sae() -> slm.MatryoshkaSAE:
    """Of the shape that the quickstart trains, with random weights."""
    torch.manual_seed(0)
    cfg = slm.MatryoshkaTrainingSAEConfig(
        d_in=256, d_sae=2048, k=24, metadata=SAEMetadata(hook_name="blocks.1.hook_resid_post")
    )
    sae = slm.MatryoshkaTrainingSAE(cfg)
    batch = torch.randn(64, cfg.d_in)
    sae.training_forward_pass(TrainStepInput(batch, {}, None, 0, False))  # sets the threshold
    return slm.MatryoshkaSAE.from_sae(sae)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_examples_run(
    page: str,
    quickstart_sae: slm.MatryoshkaSAE,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """One page, one namespace, in an empty folder where the quickstart has been run."""
    monkeypatch.chdir(tmp_path)
    quickstart_sae.save(tmp_path / "quickstart" / "sae")
    namespace: dict[str, object] = {}
    for block in blocks(page, "python"):
        code = compile("\n" * block.line + block.text, page, "exec")  # errors name the page's line
        if block.excuse is None:
            exec(code, namespace)
        # `print(x)  # (1, 2)` says what is printed
        shown = re.findall(r"^print\(.*\) +# (\(.*\))$", block.text, re.MULTILINE)
        printed = capsys.readouterr().out.splitlines()
        assert not set(shown) - set(printed)


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_yaml_examples_are_valid(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The blocks of a page add up to one file."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text("".join(block.text for block in blocks(page, "yaml")))
    if "saes" in read_mapping(file):
        checked_bench_config(read_mapping(file))
    else:
        config_check.checked_config(read_settings(file, []), page)


# ---- commands


def commands() -> Iterator[tuple[str, str]]:
    """Every command line of ours, in blocks and inside sentences, with the page that it is on."""
    for page, text in (PAGES | README).items():
        shell = "".join(block.text for block in blocks(page, ""))
        lines = shell.replace("\\\n", " ").splitlines()
        sentences = re.findall("`([^`]+)`", FENCE.sub("", text))
        for line in [*lines, *(sentence.replace("\n", " ") for sentence in sentences)]:
            for command in line.split("&&"):
                if command.strip().startswith(f"{cli.PROGRAM} "):
                    yield page, command.strip()


def options_of(arguments: list[str], name: str) -> list[str]:
    return [value for option, value in zip(arguments, arguments[1:]) if option == name]


def test_the_commands_are_found():
    names = {shlex.split(command)[1] for _, command in commands()}
    assert {"quickstart", "train", "bench"} <= names


@pytest.mark.parametrize(("page", "command"), sorted(set(commands())))
def test_commands_exist(page: str, command: str):
    name, *arguments = shlex.split(command, comments=True)[1:]
    group = typer.main.get_command(cli.app)
    assert name in group.commands, page
    known = {"-h", "--help"}.union(*(parameter.opts for parameter in group.commands[name].params))
    if name == "train":  # takes SAELens's flags as well
        known |= {f"--{flag}" for flag in ("architecture", *config_check.known_flags())}
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    assert given <= known, page


@pytest.mark.parametrize("command", sorted({command for _, command in commands()}))
def test_configs_in_commands_can_be_used(command: str):
    name, *arguments = shlex.split(command, comments=True)[1:]
    overrides = options_of(arguments, "--set")
    for argument in arguments:
        if not argument.startswith(("train_configs/", "bench_configs/")):
            continue
        path = ROOT / argument
        if name == "train":
            config_check.checked_config(read_settings(path, overrides), argument)
        else:
            changes = [parse_override(override) for override in overrides]
            kind = read_mapping(path).get("kind")
            if kind in GROUND_TRUTH:
                validated(GROUND_TRUTH[kind], read_mapping(path), argument, changes)
                continue
            config = checked_bench_config(read_mapping(path), argument, changes)
            assert set(options_of(arguments, "--only")) <= set(config.evals)


def test_files_that_are_named_exist():
    folders = "train_configs|bench_configs|docs|benchmarks|tests|sae_lens_matryoshka"
    for page, text in (PAGES | README).items():
        for name in re.findall(rf"(?<![\w/.-])(?:{folders})/[\w./-]*\w", text):
            assert (ROOT / name).exists(), f"{page}: {name}"


# ---- the reference


def test_the_reference_holds_every_public_name():
    described = re.findall(r"^::: ([\w.]+)$", PAGES["docs/reference.md"], re.MULTILINE)
    for identifier in described:
        module, _, name = identifier.rpartition(".")
        assert hasattr(importlib.import_module(module), name), identifier
    public = {thing for name in slm.__all__ if not ismodule(thing := getattr(slm, name))}
    public |= {slm.bench.run, slm.bench.BenchConfig, slm.hub.publish, slm.hub.convert}
    homes = {f"{thing.__module__}.{thing.__qualname__}" for thing in public}
    assert homes <= set(described)
