"""An SAE built to absorb: one latent per first letter, but for one letter every fourth word has a latent
of its own, which carries the letter's direction and silences the letter's latent."""

import random
from string import ascii_lowercase
from typing import Any

import numpy as np
import torch
from bench_helpers import HOOK, random_sae
from sklearn.linear_model import LogisticRegression

from sae_lens_matryoshka.demo.model import load_model

LETTER = "s"
EVERY = 4
WORD_POSITION = -6
TEMPLATE = "{word} has the first letter:"


def spelling_activations(seed: int = 1) -> tuple[list[str], torch.Tensor]:
    """All words of the vocabulary, and the residual stream at each in SAEBench's prompt."""
    from sae_bench.evals.absorption.prompting import create_icl_prompt
    from sae_bench.evals.absorption.vocab import get_alpha_tokens

    model: Any = load_model()
    words = sorted(get_alpha_tokens(model.tokenizer))
    random.seed(seed)
    prompts = [create_icl_prompt(word, words, TEMPLATE, max_icl_examples=10).base for word in words]
    found = []
    with torch.no_grad():
        for start in range(0, len(prompts), 64):
            _, cache = model.run_with_cache(prompts[start : start + 64], names_filter=HOOK)
            found.append(cache[HOOK][:, WORD_POSITION])
    return words, torch.cat(found)


def build(absorbs: bool) -> Any:
    """The SAE; with absorbs=False, the same letters' latents without the words' own ones."""
    words, x = spelling_activations()
    letters = np.array([word.strip()[0].lower() for word in words])
    own = np.flatnonzero(letters == LETTER)[::EVERY]
    sae = random_sae(d_sae=26 + len(own))
    sae.b_dec.data.zero_()
    sae.threshold.data.zero_()
    for i, letter in enumerate(ascii_lowercase):
        fires = letters == letter
        sae.W_dec.data[i] = _write(sae, i, x, fires)
        if absorbs and letter == LETTER:
            fires[own] = False
            _write(sae, i, x, fires)
    s = ascii_lowercase.index(LETTER)
    for latent, word in enumerate(own, start=26):
        _write(sae, latent, x, np.arange(len(words)) == word)
        sae.W_dec.data[latent] = sae.W_dec.data[s]
        if not absorbs:
            sae.threshold.data[latent] = 1e9
    return sae


def _write(sae: Any, latent: int, x: torch.Tensor, fires: np.ndarray) -> torch.Tensor:
    """Let a latent fire on some of the activations, as strong as they are along the probe's direction."""
    probe = LogisticRegression(max_iter=300, class_weight="balanced", C=100).fit(x, fires)
    weight, bias = torch.tensor(probe.coef_[0]).float(), float(probe.intercept_[0])
    inside = x[torch.tensor(fires)]
    direction = weight / weight.norm()
    strength = (inside @ direction).mean() / (inside @ weight + bias).mean()
    sae.W_enc.data[:, latent] = strength * weight
    sae.b_enc.data[latent] = strength * bias
    return direction
