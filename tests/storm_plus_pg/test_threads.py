import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from storm_rl import STORMPlusPG
from storm_rl.storm_plus_pg.numpy_actor_critic import one_thread


def blas_threads() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


def all_threads() -> list[int]:
    return [torch.get_num_threads(), *blas_threads()]


@pytest.fixture(autouse=True)
def _two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def model(width: int = 8) -> STORMPlusPG:
    arguments: dict[str, Any] = {"policy_kwargs": {"net_arch": [width, width]}, "critic_steps": 1, "n_steps": 8}
    return STORMPlusPG("MlpPolicy", make_vec_env("CartPole-v1", n_envs=2), seed=0, device="cpu", **arguments)


def seen_while_learning(width: int = 8) -> list[int]:
    seen: list[list[int]] = []

    def look(*_: object) -> bool:
        seen.append(all_threads())
        return True

    model(width).learn(16, callback=look)
    assert all(threads == seen[0] for threads in seen)
    return seen[0]


@pytest.mark.parametrize("width", [8, 128])
def test_no_pool_has_more_threads_inside_learn_than_before_it(width: int) -> None:
    with threadpool_limits(1, user_api="blas"):
        assert all(now <= then for now, then in zip(seen_while_learning(width), all_threads(), strict=True))


def test_small_networks_learn_with_one_thread_and_wide_ones_with_those_of_blas() -> None:
    with threadpool_limits(2, user_api="blas"):
        before = blas_threads()
        assert seen_while_learning() == [1, *(1 for _ in before)]
        assert seen_while_learning(width=128) == [1, *before]


def test_threads_are_as_before_after_an_error_or_an_interrupt_in_learn() -> None:
    before = all_threads()
    for error in (ValueError, KeyboardInterrupt):

        def fail(*_: object, error: type[BaseException] = error) -> bool:
            raise error

        with pytest.raises(error):
            model().learn(16, callback=fail)
        assert all_threads() == before


def test_nested_blocks_restore_one_by_one() -> None:
    before = all_threads()
    with one_thread(blas=False):
        assert all_threads() == [1, *before[1:]]
        with one_thread(blas=True), one_thread(blas=True):
            assert set(all_threads()) == {1}
        assert all_threads() == [1, *before[1:]]
    assert all_threads() == before


@pytest.mark.parametrize("first_to_leave", [0, 1])
def test_threads_are_as_before_after_blocks_in_two_threads(first_to_leave: int) -> None:
    leave = [threading.Event(), threading.Event()]
    began, seen = threading.Semaphore(0), []

    def block(index: int) -> None:
        before = torch.get_num_threads()
        with one_thread(blas=True):
            seen.append(all_threads())
            began.release()
            leave[index].wait()
        assert torch.get_num_threads() == before

    before = all_threads()
    threads = [threading.Thread(target=block, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
        began.acquire()
    for index in (first_to_leave, 1 - first_to_leave):
        leave[index].set()
        threads[index].join()
    assert seen == [[1 for _ in before]] * 2
    assert all_threads() == before
