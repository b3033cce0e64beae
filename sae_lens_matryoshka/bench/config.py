"""A benchmark's configuration: what the YAML file may say, and an error for all else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, StrictBool, field_validator, model_validator

from sae_lens_matryoshka.settings.model_names import hook_of
from sae_lens_matryoshka.settings.strict_models import (
    AbsolutePath,
    Seed,
    Seeds,
    Strict,
    validated,
)
from sae_lens_matryoshka.settings.yaml_file import ConfigError

EvalName = Literal["absorption", "sparse_probing", "tpp", "scr", "sae_probes", "core"]
DEMO = "demo"


class ModelSource(Strict):
    """
    The language model.

    Args:
        name: TransformerLens's name of a Hub model, or "demo" for the one that comes with this package.
        folder: Instead of a name: a folder with weights, config and tokenizer, as transformers saves.
        dtype: Data type of weights and activations; SAEs are cast to it. Not float16: SAEBench's sums
            overflow in it and give garbage without an error.
        device: Where everything runs. None: a CUDA device if there is one, else the CPU.
        batch_size: Sequences per forward pass.
        prepend_bos: Whether prompts start with the BOS token. None: as TransformerLens has it for the
            model's architecture, which for some is only a guess.
    """

    name: str | None = None
    folder: AbsolutePath | None = None
    prepend_bos: bool | None = None
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    device: str | None = None
    batch_size: int = Field(default=32, ge=1)

    @field_validator("dtype", mode="before")
    @classmethod
    def _refuse_float16(cls, value: object) -> object:
        if value == "float16":
            raise ValueError(
                "SAEBench's sums overflow in float16 and give garbage without an error; "
                "take bfloat16 or float32"
            )
        return value

    @model_validator(mode="after")
    def _one_source(self) -> "ModelSource":
        if (self.name is None) == (self.folder is None):
            raise ValueError("give either a name or a folder")
        if self.name == DEMO and self.prepend_bos is not None:
            raise ValueError("prepend_bos has no effect on the demo model, which starts with BOS")
        return self

    @property
    def is_local(self) -> bool:
        """Whether it is read from this machine."""
        return self.folder is not None or self.name == DEMO

    @property
    def label(self) -> str:
        """The model's name in results and folders, without slashes."""
        return (self.name or cast(Path, self.folder).name).replace("/", "_")


class SAESource(Strict):
    """
    One SAE.

    Args:
        name: Its name in tables and files; letters, digits, "-", "_" and ".".
        folder: A local folder with cfg.json and sae_weights.safetensors.
        repo: Instead: a Hub repo; needs `id`.
        release: Instead: a release name of SAELens; needs `id`.
        demo: Instead: "matryoshka", "batchtopk" or "best" (the recipe of that name), trained on the demo
            model before the benchmark.
        seed: Of that training, its start and the order of its texts; 0 where none is given.
        id: The SAE's id in the repo or release.
        revision: Branch, tag or commit of the repo.
        format: The repo's format: SAELens's own or dictionary_learning's (`ae.pt`).
        widths: Nested widths, for SAEs whose metadata does not hold them.
        levels: "all", "outermost" or a list of level numbers, 0 the innermost.
    """

    name: str = Field(pattern=r"^[\w.-]+$")
    folder: AbsolutePath | None = None
    repo: str | None = None
    release: str | None = None
    demo: Literal["matryoshka", "batchtopk", "best"] | None = None
    seed: Seed | None = None
    id: str | None = None
    revision: str | None = None
    format: Literal["saelens", "dictionary_learning"] = "saelens"
    widths: list[int] | None = None
    levels: Literal["all", "outermost"] | list[int] = "all"

    @model_validator(mode="after")
    def _one_source(self) -> "SAESource":
        given = [key for key in ("folder", "repo", "release", "demo") if getattr(self, key)]
        if len(given) != 1:
            raise ValueError("give exactly one of folder, repo, release, demo")
        if self.seed is not None and self.demo is None:
            raise ValueError("seed goes with demo, whose SAEs are trained here")
        if (self.id is not None) != (given[0] in ("repo", "release")):
            raise ValueError("id goes with a repo or a release, and only with them")
        if self.format != "saelens" and self.repo is None:
            raise ValueError("format goes with a repo; releases and folders are known to SAELens")
        if self.revision and (self.repo is None or self.format != "saelens"):
            raise ValueError("revision goes with a repo in SAELens's format")
        return self

    @property
    def training_seed(self) -> int:
        """The seed that an SAE of the demo is trained with."""
        return self.seed or 0


class PublishedSource(Strict):
    """
    Results that somebody published, to stand beside those measured here.

    Args:
        name: Its name in the table.
        files: SAEBench's result files (JSON), one per eval.
        l0: Active latents per token; None: from a core result among the files.
        fvu: Fraction of variance unexplained. Core's own explained variance is not taken for it.
    """

    name: str
    files: list[AbsolutePath] = Field(min_length=1)
    l0: float | None = None
    fvu: float | None = None


class TextSource(Strict):
    """
    The text on which L0 and FVU are measured.

    Args:
        dataset: A data set with a column "text", its split "train".
        context_size: Tokens per sequence.
        sequences: How many.
    """

    dataset: str
    context_size: int = Field(default=128, ge=2)
    sequences: int = Field(default=256, ge=1)


class BenchConfig(Strict):
    """
    A benchmark of SAEs with SAEBench's evals.

    Args:
        kind: "saebench".
        model: The language model.
        hook_name: The hook that all SAEs were trained on; for SAEs of a Hugging Face model's block, its module
            name will do.
        saes: The SAEs.
        evals: Eval to its SAEBench fields, e.g. {"absorption": {"max_k_value": 10}}.
        seeds: Seeds of the evals: probes, prompts, draws of the data.
        text: The text on which L0 and FVU are measured.
        data: "hub", "demo", or a folder that stands in for the Hub: data set "a/b" is its folder a/b.
        baseline: The SAE or published result that differences are taken to.
        published: Results of others.
        upstream_defaults: Leave absorption's probe with SAEBench's batch size, however few steps
            that makes.
        jobs: Processes side by side.
        output: Folder for the results.
        quick: Whether the settings under `when_quick` apply.
        when_quick: Keys (dotted) and the values that they take in a quick run.
    """

    kind: Literal["saebench"] = "saebench"
    model: ModelSource
    hook_name: str
    saes: list[SAESource] = Field(min_length=1)
    evals: dict[EvalName, dict[str, Any]] = Field(min_length=1)
    seeds: Seeds = [0, 1, 2]
    text: TextSource
    data: Literal["hub", "demo"] | AbsolutePath = Field(default="hub", union_mode="left_to_right")
    baseline: str | None = None
    published: list[PublishedSource] = []
    upstream_defaults: bool = False
    jobs: int = Field(default=1, ge=1)
    output: AbsolutePath
    quick: StrictBool = False
    when_quick: dict[str, Any] = {}

    @field_validator("hook_name")
    @classmethod
    def _as_transformer_lens_has_it(cls, value: str) -> str:
        return hook_of(value)

    @field_validator("evals", mode="before")
    @classmethod
    def _bare_names(cls, value: object) -> object:
        """`absorption:` without fields is null in YAML."""
        if not isinstance(value, dict):
            return value
        return {k: {} if v is None else v for k, v in value.items()}

    @model_validator(mode="after")
    def _names_fit(self) -> "BenchConfig":
        names = [source.name for source in (*self.saes, *self.published)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the names in saes and published must differ, but {twice} repeat")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"baseline: {self.baseline!r} is none of {names}")
        demo_saes = [source.name for source in self.saes if source.demo]
        if demo_saes and self.model.name != DEMO:
            raise ValueError(f"{demo_saes} are trained on the demo model: model must be demo too")
        return self

    @property
    def data_folder(self) -> Path | None:
        """The folder that stands in for the Hub; None for the Hub itself."""
        if self.data == DEMO:
            return self.output / "demo" / "data"
        return self.data if isinstance(self.data, Path) else None

    @property
    def demo_saes(self) -> Path:
        """The folder of the demo's SAEs."""
        return self.output / "demo" / ("small_saes" if self.quick else "saes")

    @property
    def is_offline(self) -> bool:
        """Whether nothing needs a network."""
        here = all(source.folder or source.demo for source in self.saes)
        return self.model.is_local and self.data_folder is not None and here


def checked_config(
    settings: dict[str, Any],
    name: str = "config",
    overrides: Sequence[tuple[str, Any]] = (),
) -> BenchConfig:
    """
    The configuration that the settings describe, with the quick ones if it is a quick run.

    Args:
        settings: As read from YAML, nested; stay as they are.
        name: What to call them in errors, e.g. the file.
        overrides: Dotted keys and values that replace those of the settings, the quick ones included.

    Raises:
        ConfigError: A key is unknown or missing, or a value cannot be used. Every wrong key is named.
    """
    for key, value in overrides:
        if key.startswith("when_quick."):
            inner = key.removeprefix("when_quick.")
            raise ConfigError(f"{key} cannot be replaced. Set what it stands for: {inner}={value}.")
        if key == "quick":
            settings = {**settings, "quick": value}
    if settings.get("quick") is True and isinstance(settings.get("when_quick"), dict):
        overrides = [*settings["when_quick"].items(), *overrides]
    return validated(BenchConfig, settings, name, overrides)
