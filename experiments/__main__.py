"""``python -m experiments``."""

import os
import signal
import sys

INTERRUPTED = 130
# As of click for arguments that it refuses itself.
WRONG_ARGUMENTS = 2
TO_CONTINUE = "Interrupted; the same command continues with what is missing."


def stop(signum: int, frame: object) -> None:
    """End at once: while modules are imported nothing is open, and an exception might be taken for a failed import."""
    print(TO_CONTINUE, flush=True)
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    # Not where a shell has told a background process to ignore it.
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, stop)
    # Not at the top: worker processes import this module again, and need none of it.
    from experiments.cli import app
    from experiments.engines import is_full_disk
    from experiments.execution import LostRunsError

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # Once is enough.
            print(TO_CONTINUE, flush=True)
        raise
    except LostRunsError as error:
        sys.exit(f"error: {error}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_ARGUMENTS)
    except OSError as error:
        if is_full_disk(error):
            sys.exit(f"error: no space left ({error}); nothing is half-written, and the same command continues")
        if error.filename is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(WRONG_ARGUMENTS)
