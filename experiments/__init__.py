"""The benchmark: command line, runners, studies and stored results."""
