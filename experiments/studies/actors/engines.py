"""What a message to an actor and back costs, by Ray and by Dask."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import ray

from experiments.rows import Row
from storm_rl.distributed.ray_vec_env import start_ray

# Bytes: the parameters of two layers of 64 units, or a short rollout of vectors; and one of images.
SIZES = (50_000, 5_000_000)
CALLS = 50

Call = Callable[[Any], Any]


class Echo:
    """An actor that gives back what it is given."""

    def give(self, message: Any) -> Any:
        """The message."""
        return message


@contextmanager
def _by_ray() -> Iterator[Call]:
    start_ray(None, 1)
    actor = ray.remote(Echo).remote()
    yield lambda message: ray.get(actor.give.remote(message))
    ray.kill(actor)


@contextmanager
def _by_dask() -> Iterator[Call]:
    import distributed

    cluster: Any = distributed.LocalCluster  # Dask has no types.
    with cluster(n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None) as workers:
        client = workers.get_client()
        actor = client.submit(Echo, actor=True).result()
        yield lambda message: actor.give(message).result()
        client.close()


ENGINES = {"Ray": _by_ray, "Dask": _by_dask}


def round_trips(repeats: int) -> list[Row]:
    """Median milliseconds of a call, of each engine and size, in turn."""
    rows: list[Row] = []
    with _by_ray() as by_ray, _by_dask() as by_dask:
        for repeat in range(repeats):
            for engine, call in zip(ENGINES, (by_ray, by_dask), strict=True):
                for size in SIZES:
                    message, seconds = np.zeros(size, dtype=np.uint8), []
                    for _ in range(CALLS):
                        began = time.perf_counter()
                        call(message)
                        seconds.append(time.perf_counter() - began)
                    milliseconds = 1e3 * float(np.median(seconds))
                    rows.append({"engine": engine, "bytes": size, "repeat": repeat, "milliseconds": milliseconds})
    return rows
