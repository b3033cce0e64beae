"""A hash of what an SAE computes."""

from bench_helpers import random_sae

from sae_lens_matryoshka.levels.fingerprint import fingerprint
from sae_lens_matryoshka.saes.inference_sae import copy_of


def test_a_fingerprint_is_of_what_is_computed():
    sae = random_sae()
    assert fingerprint(sae) == fingerprint(copy_of(sae))
    renamed = copy_of(sae)
    renamed.cfg.metadata.model_name = "x"
    assert fingerprint(sae) == fingerprint(renamed)
    changed = copy_of(sae)
    changed.threshold.data[0] += 1e-6
    assert fingerprint(sae) != fingerprint(changed)
    without_bos = copy_of(sae)
    without_bos.cfg.metadata.prepend_bos = False
    assert fingerprint(sae) != fingerprint(without_bos)
    says_bos = copy_of(sae)
    sae.cfg.metadata.prepend_bos, says_bos.cfg.metadata.prepend_bos = None, True
    assert fingerprint(sae) == fingerprint(says_bos)  # SAELens's default
    decoded = copy_of(sae)
    decoded.cfg.apply_b_dec_to_input = not sae.cfg.apply_b_dec_to_input
    assert fingerprint(sae) != fingerprint(decoded)
