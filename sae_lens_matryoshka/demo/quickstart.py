"""Train a Matryoshka SAE on the demo's language model, evaluate it level by level, look at it."""

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.text import Text
from sae_lens import SAE, ActivationsStore, LoggingConfig
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.training.activation_scaler import ActivationScaler

from sae_lens_matryoshka.demo.contexts import LatentActivity, latent_activity, top_snippets
from sae_lens_matryoshka.demo.model import MODEL_NAME, load_model
from sae_lens_matryoshka.demo.text import NOT_SHOWN, shuffled, texts
from sae_lens_matryoshka.levels.matryoshka_sae import MatryoshkaSAE
from sae_lens_matryoshka.levels.measurements import (
    DEAD,
    FVU,
    L0,
    NOTES,
    Measurement,
    measurement,
    record,
)
from sae_lens_matryoshka.ownership import claim
from sae_lens_matryoshka.terminal_table import Grid, fitted
from sae_lens_matryoshka.terminal_table import console as terminal
from sae_lens_matryoshka.training.runner import (
    LanguageModelSAERunnerConfig,
    MatryoshkaSAETrainingRunner,
)
from sae_lens_matryoshka.training.settings.presets import Recipe

if TYPE_CHECKING:
    from transformer_lens import HookedTransformer

HOOK_NAME = "blocks.1.hook_resid_post"  # the middle of the model's four layers
CONTEXT_SIZE = 128
SEED = 0
LATENTS_SHOWN = 5
DENSE = 0.1  # a latent that fires on more of the tokens says little in a few snippets


@dataclass(frozen=True)
class Size:
    """How much the quickstart does.

    Args:
        d_sae: Latents.
        k: Active latents per token.
        training_tokens: Tokens that the SAE is trained on.
        batch_tokens: Tokens per training step.
        evaluated_prompts: Held-out sequences of 128 tokens that it is evaluated on.
        shown_prompts: Held-out sequences that snippets are taken from.
    """

    d_sae: int = 2048
    k: int = 24
    training_tokens: int = 800_000
    batch_tokens: int = 256
    evaluated_prompts: int = 64
    shown_prompts: int = 512


FULL = Size()
SMALL = Size(
    d_sae=256,
    k=8,
    training_tokens=100_000,
    evaluated_prompts=32,
    shown_prompts=64,
)


@dataclass
class LevelResult:
    """What a level is worth on held-out text.

    Args:
        width: Its latents.
        l0: Active latents per token.
        fvu: Share of the activations' variance that is left unexplained.
        ce_recovered: Share of the cross-entropy recovered that ablating the hook costs.
        dead: Latents that never fired on the shown text.
    """

    width: int
    l0: float
    fvu: float
    ce_recovered: float
    dead: int


def run(output: Path = Path("quickstart"), small: bool = False) -> list[LevelResult]:
    """Train, save, reload with stock SAELens, evaluate and show.

    Args:
        output: Folder for the trained SAE (`output/sae`) and checkpoints of an interrupted run.
        small: A run of seconds that only shows that everything works.

    Returns:
        One result per level, innermost first.

    Raises:
        ConfigError: The folder holds an SAE or checkpoints that no quickstart wrote.
        ImportError: The extra [demo], which brings the texts, is not installed.
    """
    warnings.filterwarnings("ignore", module="sae_lens|transformer_lens")
    start, size, console = time.monotonic(), SMALL if small else FULL, terminal()
    claim(output, "quickstart", ("sae", "checkpoints"))
    model = load_model()
    heldout = shuffled(texts("heldout", without=NOT_SHOWN))
    train(model, shuffled(texts("train")), output, size)

    sae = SAE.load_from_disk(output / "sae")  # by stock SAELens
    matryoshka = MatryoshkaSAE.from_sae(sae)
    tokens = _token_rows(model, sae, heldout, size.shown_prompts)
    activity = latent_activity(model, sae, tokens)
    results = [
        evaluate(model, matryoshka, level, heldout, size, activity)
        for level in range(len(matryoshka.widths))
    ]
    _record(matryoshka, results, size, n_shown=int(activity.counted.sum()))
    matryoshka.save(output / "sae")
    _show_levels(console, results)
    _show_latents(console, activity, matryoshka.widths, model.tokenizer)
    console.print(
        f"\n{time.monotonic() - start:.0f} s. The SAE is in {output / 'sae'}; open it with"
    )
    console.print(f"  SAE.load_from_disk({str(output / 'sae')!r})", highlight=False)
    return results


def train(
    model: "HookedTransformer",
    training_texts: Sequence[str],
    output: Path,
    size: Size,
    widths: Sequence[int] | None = None,
    recipe: Recipe | None = None,
    seed: int = SEED,
) -> None:
    """Train through SAELens's store and runner; saves in output/sae.

    Args:
        model: The demo's language model.
        training_texts: Texts in the order in which they are read.
        output: Folder for the SAE and for checkpoints.
        size: How much to train.
        widths: Nested widths; [d_sae] makes a flat SAE, None the default levels.
        recipe: A recipe for the SAE, with lengths of its own; learning rate and warm-up stay.
        seed: Of the SAE's start.
    """
    torch.manual_seed(seed)
    given: dict[str, Any] = {}  # beside a recipe only what is to replace its own
    if widths is not None:
        given["matryoshka_widths"] = list(widths)
    if recipe is None:
        given["lr_decay_steps"] = size.training_tokens // size.batch_tokens // 3
        given["dead_feature_window"] = 200  # SAELens's 1,000 steps are a third of the run
    cfg = LanguageModelSAERunnerConfig(
        architecture="matryoshka",
        recipe=recipe,
        d_in=model.cfg.d_model,
        d_sae=size.d_sae,
        k=size.k,
        **given,
        normalize_activations="expected_average_only_in",
        model_name=MODEL_NAME,
        hook_name=HOOK_NAME,
        dataset_path="sae-probes",
        is_dataset_tokenized=False,
        context_size=CONTEXT_SIZE,
        exclude_special_tokens=True,
        training_tokens=size.training_tokens,
        train_batch_size_tokens=size.batch_tokens,
        store_batch_size_prompts=32,
        n_batches_in_buffer=128,  # sequences to mix: 16,384 tokens
        n_batches_for_norm_estimate=10,
        lr=2e-3,
        lr_warm_up_steps=80,
        checkpoint_path=str(output / "checkpoints"),
        output_path=str(output / "sae"),
        logger=LoggingConfig(log_to_wandb=False),
        verbose=False,
        seed=seed,
    )
    runner = MatryoshkaSAETrainingRunner(
        cfg,
        override_model=model,
        override_dataset=Dataset.from_dict({"text": list(training_texts)}),
    )
    runner.run()


def evaluate(
    model: "HookedTransformer",
    matryoshka: MatryoshkaSAE,
    level: int,
    heldout: Sequence[str],
    size: Size,
    activity: LatentActivity,
) -> LevelResult:
    """SAELens's evals of one level's stock SAE on held-out text, the same text for every level."""
    sae = matryoshka.level(level)
    metrics, _ = run_evals(
        sae,
        _store(model, sae, heldout),
        model,
        ActivationScaler(),
        EvalConfig(
            batch_size_prompts=16,
            n_eval_reconstruction_batches=size.evaluated_prompts // 16,
            n_eval_sparsity_variance_batches=size.evaluated_prompts // 16,
            compute_ce_loss=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
        ),
        exclude_special_tokens=True,
    )
    width = matryoshka.widths[level]
    return LevelResult(
        width=width,
        l0=metrics["sparsity"]["l0"],
        fvu=1 - metrics["reconstruction_quality"]["explained_variance"],
        ce_recovered=metrics["model_performance_preservation"]["ce_loss_score"],
        dead=int((activity.frequency[:width] == 0).sum()),
    )


def _store(model: "HookedTransformer", sae: SAE[Any], heldout: Sequence[str]) -> ActivationsStore:
    return ActivationsStore.from_sae(
        model, sae, Dataset.from_dict({"text": list(heldout)}), streaming=False
    )


def _token_rows(
    model: "HookedTransformer", sae: SAE[Any], heldout: Sequence[str], n_rows: int
) -> torch.Tensor:
    return _store(model, sae, heldout).get_batch_tokens(n_rows)


def _record(
    matryoshka: MatryoshkaSAE, results: Sequence[LevelResult], size: Size, n_shown: int
) -> None:
    """Keep the results in the SAE's metadata, where a model card finds them."""
    measured: dict[int, dict[str, Measurement]] = {}
    for result in results:
        values = {
            L0: result.l0,
            FVU: result.fvu,
            "cross-entropy recovered ↑": result.ce_recovered,
            DEAD: result.dead,
        }
        measured[result.width] = {label: measurement([value]) for label, value in values.items()}
    record(matryoshka.sae, measured)
    matryoshka.sae.cfg.metadata[NOTES] = [
        f"Measured on {size.evaluated_prompts} held-out sequences of {CONTEXT_SIZE} tokens; L0 and FVU leave "
        "out special tokens (BOS, EOS, padding)",
        f"Dead latents fired on none of {n_shown:,} held-out tokens",
    ]


def _show_levels(console: Console, results: Sequence[LevelResult]) -> None:
    header = ("level", "width", L0, FVU, "cross-entropy recovered ↑", "dead latents")
    rows = [
        (
            str(level),
            f"{result.width:,}",
            f"{result.l0:.1f}",
            f"{result.fvu:.3f}",
            f"{result.ce_recovered:.1%}",
            f"{result.dead} ({result.dead / result.width:.1%})",
        )
        for level, result in enumerate(results)
    ]
    title = "Held-out text, level by level (each level without the latents beyond it)"
    console.print(Text(f"\n{title}", style="bold"))
    for table in fitted(Grid(header, rows, fixed=4, left=0), console.width):
        console.print(table)


def _show_latents(
    console: Console, activity: LatentActivity, widths: Sequence[int], tokenizer: Any
) -> None:
    groups = [("first", 0, widths[0]), ("last", widths[-2], widths[-1])]
    for name, lo, hi in groups:
        console.print(
            f"\n[bold]Latents of the {name} level[/bold] ({lo}-{hi - 1}), strongest snippets"
        )
        for latent in _typical_latents(activity, lo, hi):
            share = activity.frequency[latent].item()
            console.print(f"  latent {latent}, fires on {share:.2%} of tokens", style="cyan")
            for snippet in top_snippets(activity, latent, tokenizer):
                line = Text(f"    {snippet.activation:5.1f}  {snippet.before}", overflow="ellipsis")
                line.append(f"«{snippet.token}»", style="bold")
                line.append(snippet.after)
                console.print(line, no_wrap=True)


def _typical_latents(activity: LatentActivity, lo: int, hi: int) -> Iterator[int]:
    """Latents of a group from the upper half of its ranks of total activation, evenly spaced and so
    not picked by hand; without the dense ones."""
    mass = torch.zeros(activity.d_sae).index_add_(0, activity.latent, activity.activation)
    mass = mass.where(activity.frequency < DENSE, 0)[lo:hi]
    ranked = mass.argsort(descending=True)[: int((mass > 0).sum())]
    step = max(1, len(ranked) // (2 * LATENTS_SHOWN))
    yield from (ranked[step::step][:LATENTS_SHOWN] + lo).tolist()
