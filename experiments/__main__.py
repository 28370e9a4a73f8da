"""``python -m experiments``."""

import sys

if __name__ == "__main__":
    # Not at the top: worker processes import this module again, and need none of it.
    from experiments.cli import app
    from experiments.engines import is_full_disk

    try:
        app()
    except ValueError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if not is_full_disk(error):
            raise
        sys.exit(f"error: no space left ({error}); nothing is half-written, and the same command continues")
