"""Studies, agents x tasks x seeds: run, resume, aggregate, plot, report."""
