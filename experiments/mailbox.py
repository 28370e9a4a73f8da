"""How far runs on other machines are. In a file of its own: the actor's process imports nothing else."""

import queue
from collections import deque
from contextlib import suppress
from typing import Any


class Mailbox:
    """An actor of Ray's: keeps how far runs are until it is asked."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, int]] = []

    def put(self, index: int, steps: int) -> None:
        """The run of that number has done so many env steps."""
        self.messages.append((index, steps))

    def take(self) -> list[tuple[int, int]]:
        """All that has come since the last call."""
        messages, self.messages = self.messages, []
        return messages


class MailboxReader:
    """What a mailbox has, waiting for a second at most: the machine that it is on may be lost."""

    def __init__(self, mailbox: Any) -> None:
        self.mailbox = mailbox
        self.asked: Any = None
        self.messages: deque[tuple[int, int]] = deque()

    def get_nowait(self) -> tuple[int, int]:
        """The oldest message that has come.

        Raises:
            queue.Empty: There is none.
        """
        import ray
        from ray.exceptions import RayError

        if not self.messages:
            self.asked = self.asked or self.mailbox.take.remote()
            if not ray.wait([self.asked], timeout=1.0)[0]:
                raise queue.Empty
            asked, self.asked = self.asked, None
            # Without the mailbox runs go on, and only the numbers are missing.
            with suppress(RayError):
                self.messages.extend(ray.get(asked))
        if not self.messages:
            raise queue.Empty
        return self.messages.popleft()
