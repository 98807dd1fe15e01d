"""One file per question, each measured beside its peers in the same run: `python -m benchmarks.tokenize`."""
