"""The doctor: checks that everything works on the machine at hand."""
