"""The numerical heart: pick the batch's top activations and decode them nested.

Knows tensors, not SAELens. `dense` is the definition of the numbers.
"""

from sae_lens_matryoshka.engine.dense import batch_top_k, nested_decode, token_top_k

__all__ = ["batch_top_k", "nested_decode", "token_top_k"]
