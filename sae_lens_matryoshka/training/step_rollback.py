"""What a training step changes before it changes the weights, kept to be put back when it fails."""

from collections.abc import Callable
from typing import Any

import torch
from sae_lens import SAETrainer
from sae_lens.training.prefetch import PrefetchingIterator

from sae_lens_matryoshka.saes.thresholds import RecentActivations
from sae_lens_matryoshka.saes.training_sae import MatryoshkaTrainingSAE
from sae_lens_matryoshka.saes.training_state import restore_training_state


def rollback(trainer: SAETrainer[Any, Any]) -> Callable[[], None]:
    """
    Note the counts of a trainer, the buffers of its SAE and torch's random generators.

    The generators are left alone where another thread draws from them meanwhile.

    Returns:
        Puts them back, as they are now. The weights and the optimizer are left alone.
    """
    sae = trainer.sae
    n_samples, n_active = trainer.n_training_samples, trainer.n_frac_active_samples
    frequencies = trainer.act_freq_scores.clone()  # (d_sae,), as the next one
    since_fired = trainer.n_forward_passes_since_fired.clone()
    buffers = {name: buffer.clone() for name, buffer in sae.named_buffers()}
    generator, of_gpus = None, []
    if not isinstance(trainer.data_provider, PrefetchingIterator):
        generator = torch.get_rng_state()
        of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    recent, engines = (), ()
    if isinstance(sae, MatryoshkaTrainingSAE):
        recent, engines = sae.recent_activations.batches(), sae.engine_memory

    def put_back() -> None:
        trainer.n_training_samples, trainer.n_frac_active_samples = n_samples, n_active
        trainer.act_freq_scores = frequencies
        trainer.n_forward_passes_since_fired = since_fired
        with torch.no_grad():
            for name, buffer in sae.named_buffers():
                buffer.copy_(buffers[name])
        if generator is not None:
            torch.set_rng_state(generator)
        if of_gpus:
            torch.cuda.set_rng_state_all(of_gpus)
        if isinstance(sae, MatryoshkaTrainingSAE):
            sae.recent_activations = RecentActivations()
            restore_training_state(sae, {"recent_activations": recent, "engines": engines})

    return put_back
