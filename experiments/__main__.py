"""``python -m experiments``."""

import sys

from experiments.cli import app

if __name__ == "__main__":
    try:
        app()
    except ValueError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues with the runs that are missing")
