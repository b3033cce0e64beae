"""Evaluation, card and files of a trained demo model."""

import json
import logging
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from research.demo_model.measure import bigram_loss, letter_scores, unigram_loss
from research.demo_model.tokenizer import save_tokenizer
from research.demo_model.trainer import Trainer, heldout_loss
from research.demo_model.windows import Documents
from sae_lens_matryoshka.demo.model import MODEL_NAME
from sae_lens_matryoshka.ownership import replaced_folder

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

CARD = """\
---
library_name: transformers
license: mit
---
# {name}

A small language model in the GPT-NeoX layout ({parameters:,} parameters: {layers} layers,
width {width}, {heads} heads, byte-level BPE of {vocab:,}, context {context} in training,
at most {positions}). It exists to try sparse autoencoders on: big enough to have features
worth looking at, small enough to ship. It is of no other use.

## Training

- Text: the texts of the package `sae-probes` (MIT): 155 labelled data sets of news, reviews,
  tweets, abstracts, code, names and questions. Near-copies (same first 100 characters) once,
  cut at 3,000 characters: {train_tokens:,} tokens, and 1 % held out. The texts belong to
  their authors; none is copied here.
- {spelling:.0%} of the tokens are spelling prompts ("NAME has the first letter: N"), so that
  first-letter absorption can be measured.
- An auxiliary head read the first letter of each word from the residual stream after layer
  {letter_layer} (loss weight {letter_weight}) and was thrown away afterwards: the first letter is
  a linear feature there, as in large models.
- {tokens:,} tokens ({epochs:.1f} passes), {steps:,} steps of {batch_tokens:,}, seed {seed}, float32,
  {hours:.1f} hours on {threads} CPU threads. Muon for the hidden matrices, AdamW for the rest,
  warm-up, constant rate, linear decay over the last {decay:.0%}.
- Command: `{command}`

## Held-out text

| nats per token | |
|---|---|
| unigram | {unigram:.3f} |
| bigram (prior chosen on the held-out text) | {bigram:.3f} |
| this model (float16 weights) | **{loss:.3f}** |

{heldout_tokens:,} tokens of text that was held out, no spelling prompts.

## First letters

Prompts as in SAEBench's absorption, {words:,} words. The model says the right letter for
{said:.1%}. Linear probes after layer {letter_layer}, tested on a fifth of the words: mean F1
{mean_f1:.3f}; {letters_passed} of 26 letters reach F1 0.6.
"""


def export(
    trainer: Trainer,
    tokenizer: "PreTrainedTokenizerFast",
    documents: Documents,
    heldout: "np.ndarray",
) -> dict[str, Any]:
    """Write the finished model into the folder `model` of the run: float16, with card.

    Args:
        trainer: The trained run.
        tokenizer: Its tokenizer.
        documents: The training documents, for the baselines.
        heldout: Held-out windows.  # (n_windows, context)

    Returns:
        What the card reports.
    """
    target = trainer.settings.folder / "model"
    with replaced_folder(target) as folder:
        trainer.model.half().save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        save_tokenizer(tokenizer, folder)
        trainer.model.float()  # evaluated with the rounded weights
        facts = measure(trainer, tokenizer, documents, heldout)
        (folder / "README.md").write_text(CARD.format(**facts))
        (folder / "results.json").write_text(json.dumps(facts, indent=2) + "\n")
    logger.info("wrote %s", target)
    return facts


def measure(
    trainer: Trainer,
    tokenizer: "PreTrainedTokenizerFast",
    documents: Documents,
    heldout: "np.ndarray",
) -> dict[str, Any]:
    """Evaluate a model.

    Args:
        trainer: The run.
        tokenizer: Its tokenizer.
        documents: The training documents, for the baselines.
        heldout: Held-out windows.  # (n_windows, context)

    Returns:
        The card's facts.
    """
    settings, model = trainer.settings, trainer.model
    vocab = len(tokenizer)
    scores = letter_scores(model, tokenizer, settings.letter_layer)
    return {
        "name": MODEL_NAME,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": settings.layers,
        "width": settings.width,
        "heads": settings.heads,
        "vocab": vocab,
        "context": settings.context,
        "positions": settings.max_positions,
        "train_tokens": len(documents.tokens),
        "spelling": settings.spelling_share,
        "letter_layer": settings.letter_layer,
        "letter_weight": settings.letter_weight,
        "tokens": trainer.step * settings.batch_tokens,
        "epochs": trainer.step / trainer.stream.steps_per_epoch,
        "steps": trainer.step,
        "batch_tokens": settings.batch_tokens,
        "seed": settings.seed,
        "hours": trainer.seconds / 3_600,
        "threads": torch.get_num_threads(),
        "decay": settings.decay_share,
        "command": settings.command(),
        "unigram": unigram_loss(documents.tokens, heldout, vocab),
        "bigram": bigram_loss(documents.tokens, heldout, vocab),
        "loss": heldout_loss(model, heldout),
        "heldout_tokens": heldout.size,
        **asdict(scores),
    }
