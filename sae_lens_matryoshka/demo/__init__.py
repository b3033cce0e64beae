"""The embedded default: a small real language model and real text, no network."""
