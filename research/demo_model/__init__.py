"""How the demo's language model was trained; run from a checkout of the repository."""
