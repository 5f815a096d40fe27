"""One thread that scores for all requests, so that a detector is never used twice at a time."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

from texture_ad.parameters import Count, checked

J = TypeVar("J")
R = TypeVar("R")


@checked
class Worker(Generic[J, R]):
    """Work on jobs in one thread, in batches of what is waiting.

    A batch that fails is worked on again job by job, so that one bad job spoils no other.

    Args:
        work: returns a result for each job of a batch, in order.
        batch_size: jobs in a batch, at most.
    """

    def __init__(self, work: Callable[[Sequence[J]], Sequence[R]], batch_size: Count):
        self.work = work
        self.batch_size = batch_size
        self._waiting: queue.SimpleQueue[tuple[J, Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Return whether the thread runs; jobs would wait for ever where it doesn't."""
        return self._thread.is_alive()

    def submit(self, job: J) -> "Future[R]":
        """Return the future result of a job."""
        future: Future[R] = Future()
        self._waiting.put((job, future))
        return future

    def close(self) -> None:
        """Finish the jobs that are waiting and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < self.batch_size and not self._waiting.empty():
                following = self._waiting.get()
                if following is None:
                    self._waiting.put(None)  # to be met again after this batch
                    break
                batch.append(following)
            self._finish(batch)

    def _finish(self, batch: Sequence[tuple[J, Future]]) -> None:
        """Work on a batch and set its futures, but for those that were cancelled."""
        batch = [one for one in batch if one[1].running() or one[1].set_running_or_notify_cancel()]
        if not batch:
            return
        try:
            results = self.work([job for job, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                batch[0][1].set_exception(error)
                return
            for one in batch:
                self._finish([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
