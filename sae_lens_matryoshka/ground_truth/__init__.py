"""Benchmarks whose true features are known: what an SAE should have found can be counted."""
