"""One row of the benchmarks: what is timed beside what, and how."""

import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field
from statistics import median


@dataclass
class Row:
    """Compare two pieces of work by their seconds, or by their memory.

    Args:
        work: what is timed.
        beside: what it is compared with.
        goal: least ratio; a row without a goal is there for comparison.
        ours: seconds (or MiB) of each repetition of `work`.
        baseline: the same of `beside`.
        unit: of both.
        note: what else belongs to the figure, such as both accuracies.
        holds: what the note says, where the goal asks for more than the ratio.

    Attributes:
        ratio: the median of `baseline` over that of `ours`; of seconds, how many times as fast ours is.
        low: the lowest ratio of a repetition.
        high: the highest.
        met: whether the goal is met, None without a goal.
    """

    work: str
    beside: str
    goal: float | None
    ours: list[float]
    baseline: list[float]
    _: KW_ONLY
    unit: str = "s"
    note: str = ""
    holds: bool = True
    ratio: float = field(init=False)
    low: float = field(init=False)
    high: float = field(init=False)
    met: bool | None = field(init=False)

    def __post_init__(self) -> None:
        ratios = [p / o for o, p in zip(self.ours, self.baseline, strict=True)]
        self.ratio = median(self.baseline) / median(self.ours)
        self.low = min(ratios)
        self.high = max(ratios)
        self.met = None if self.goal is None else bool(self.ratio >= self.goal and self.holds)


def by_turns(
    *functions: Callable[[], object],
    repetitions: int,
    calls: int = 1,
    warm: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return the seconds of one call of each function, measured `repetitions` times in turn.

    Args:
        functions: that are timed.
        repetitions: turns of each.
        calls: that a turn's time is the mean of.
        warm: begin each turn with a call that isn't counted. OpenMP's threads of the function before it spin on for a
            while, and the caches are full of its data.
        clock: that tells the seconds; `time.process_time` leaves out what other programs take of the processor.
    """
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(repetitions):
        for function, found in zip(functions, seconds, strict=True):
            if warm:
                function()
            found.append(_time(function, calls, clock))
    return seconds


def _time(function: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    """Return the mean seconds of so many calls."""
    start = clock()
    for _ in range(calls):
        function()
    return (clock() - start) / calls
