"""``python -m experiments.studies.optimisers``."""

import typer

from experiments.studies.optimisers import optimisers

if __name__ == "__main__":
    typer.run(optimisers)
