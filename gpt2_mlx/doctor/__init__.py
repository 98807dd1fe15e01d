"""The doctor: checks that tell whether everything holds on this very machine."""
