"""One thread while small networks are trained: what more save in arithmetic they lose by waiting for each other."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

# BLAS has one number of threads for the whole process. Held by the block that has lowered it.
_blas_limit = threading.Lock()


@contextmanager
def one_thread(blas: bool) -> Iterator[None]:
    """Inside the block torch has one thread, and with ``blas`` numpy's BLAS as well.

    No limit is ever raised, and when the block ends, in whatever way, the threads are as before. Blocks may be nested.
    Of blocks in several threads of a program, the first to begin gives BLAS its threads back when it ends.

    Torch's idle threads wait actively. Beside BLAS's own, two small pools on two cores were measured to be 18 times as
    slow as one thread.
    """
    # Of the calling thread, unlike BLAS's.
    torch_threads = torch.get_num_threads()
    lowers_blas = blas and _blas_limit.acquire(blocking=False)
    try:
        with threadpool_limits(1, user_api="blas") if lowers_blas else nullcontext():
            torch.set_num_threads(1)
            yield
    finally:
        torch.set_num_threads(torch_threads)
        if lowers_blas:
            _blas_limit.release()
