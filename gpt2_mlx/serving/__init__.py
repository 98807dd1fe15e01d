"""The serving wing."""
