"""Speed and memory against the peers, measured side by side in one run; results in docs/results."""
