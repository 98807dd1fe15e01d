"""The generation wing: from prompts to texts, many at a time."""
