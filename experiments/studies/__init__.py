"""Studies: one question each, with stored results that one command rebuilds."""
