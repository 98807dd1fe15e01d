"""The training wing: from flags and a text to a run folder."""
