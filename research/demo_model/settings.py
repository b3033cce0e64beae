"""Settings of the demo model's training, given by command line."""

import argparse
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

RESUMABLE = ("out", "tokens", "text_folder", "threads", "checkpoint_minutes", "log_every")
"""Settings that may change between a run and its resumption."""


def _option(default: Any, doc: str) -> Any:
    return field(default=default, metadata={"help": doc})


@dataclass(frozen=True)
class TrainSettings:
    """Everything that defines a training run; each field is a command-line flag."""

    out: str = _option("demo_model", "folder for checkpoints, log and the model")
    tokens: int = _option(60_000_000, "tokens to train on, passes over the text included")
    text_folder: str = _option("", "folder of *.csv.zst files; empty: sae_probes' own")
    seed: int = _option(0, "seed of weights, order and spelling prompts")
    vocab_size: int = _option(4_096, "tokens of the byte-level BPE")
    # SAEBench tests its letter probes on a random fifth of the vocabulary: of 30 about six, x and z included
    words_per_letter: int = _option(30, "frequent words of each letter made single tokens")
    layers: int = _option(4, "layers")
    width: int = _option(256, "width of the residual stream")
    heads: int = _option(4, "attention heads")
    max_positions: int = _option(512, "longest context of the finished model")
    context: int = _option(256, "training context, tokens")
    windows_per_batch: int = _option(24, "windows of `context` tokens per step")
    spelling_share: float = _option(0.06, "share of spelling prompts among the tokens")
    matrix_lr: float = _option(4e-3, "learning rate of Muon (hidden matrices)")
    other_lr: float = _option(3e-3, "learning rate of AdamW (all else)")
    weight_decay: float = _option(0.1, "decoupled weight decay of the matrices")
    warmup_steps: int = _option(100, "steps of linear warm-up")
    decay_share: float = _option(0.2, "last part of training: linear decay to zero")
    letter_layer: int = _option(1, "layer after which the letter head reads")
    letter_weight: float = _option(0.1, "weight of the letter head's loss")
    heldout_windows: int = _option(2_000, "held-out windows at the end (a tenth in between)")
    log_every: int = _option(50, "steps between log lines; held-out loss each tenth line")
    checkpoint_minutes: float = _option(5.0, "minutes between checkpoints")
    threads: int = _option(2, "CPU threads")

    @property
    def batch_tokens(self) -> int:
        """Tokens per step."""
        return self.context * self.windows_per_batch

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return max(1, self.tokens // self.batch_tokens)

    @property
    def folder(self) -> Path:
        """The output folder."""
        return Path(self.out)

    @property
    def text_path(self) -> Path | None:
        """The folder of texts, None for sae_probes' own."""
        return Path(self.text_folder) if self.text_folder else None

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the run it resumes.

        Returns:
            Names and values.
        """
        return {k: v for k, v in asdict(self).items() if k not in RESUMABLE}

    def check_same(self, other: dict[str, Any]) -> None:
        """Raise if a checkpoint comes from other settings.

        Args:
            other: The checkpoint's `identity()`.
        """
        ours = self.identity()
        differing = [k for k in ours if ours[k] != other.get(k)]
        if differing:
            listed = ", ".join(f"{k}: {other.get(k)} -> {ours[k]}" for k in differing)
            raise ValueError(
                f"the checkpoint in {self.out} has other settings ({listed}); "
                "give those, or another --out"
            )

    def learning_rate_factor(self, step: int) -> float:
        """Return the schedule: warm-up, constant, linear decay ("WSD").

        Constant until late, so that a checkpoint can be resumed with another total.

        Args:
            step: Step number, from 0.

        Returns:
            Factor on both learning rates, 0 to 1.
        """
        warm = min(1.0, (step + 1) / self.warmup_steps)
        decay_steps = max(1, round(self.decay_share * self.total_steps))
        cool = (self.total_steps - step) / decay_steps
        return max(0.0, min(warm, cool))

    def command(self) -> str:
        """Return the command line of this run, without the output folder.

        Returns:
            A command with the flags that differ from their defaults.
        """
        flags = [
            f"--{f.name.replace('_', '-')} {getattr(self, f.name)}"
            for f in fields(self)
            if (f.name == "tokens" or f.name not in RESUMABLE)
            and getattr(self, f.name) != f.default
        ]
        return " ".join(["python -m research.demo_model.train_model", *flags])


def parse(argv: list[str] | None = None) -> tuple[TrainSettings, bool]:
    """Read the command line.

    Args:
        argv: Arguments; None means the process's own.

    Returns:
        The settings, and whether only to export the last checkpoint.
    """
    parser = argparse.ArgumentParser(
        description="Train the demo's language model on the texts of sae-probes. "
        "Run again with the same --out to go on from its last checkpoint; "
        "a smaller --tokens then brings the final decay forward.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for f in fields(TrainSettings):
        flag = f"--{f.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(f.default), default=f.default, help=f.metadata["help"])
    parser.add_argument(
        "--export-only",
        action="store_true",
        help="evaluate and export the last checkpoint, no training",
    )
    given = vars(parser.parse_args(argv))
    export_only = given.pop("export_only")
    return TrainSettings(**given), export_only
