"""Which rows train in which order: a function of (footers, seed, step) alone. Runs on the driver; reads no audio.

An epoch takes every row group as often as its dataset's weight says, shuffles them, joins their rows end to end and
cuts the line into windows of whole steps. A window is the unit of reading: its rows are decoded and shuffled together.
Since the plan depends neither on the number of workers nor on what ran before, a step number is all
that a checkpoint must keep of the position in the data: `plan_windows` starts there, having read nothing of what came
earlier.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tiny_audio.config import require


@dataclass(frozen=True, slots=True)  # there may be 100,000
class RowGroup:
    """A row group of a Parquet file, and how often an epoch takes it."""

    path: str
    index: int
    num_rows: int
    dataset: str = ""  # as the config names it; groups of one share its weight
    weight: float = 1.0


@dataclass(frozen=True)
class RowSlice:
    """Rows [start, stop) of a row group."""

    path: str
    row_group: int
    start: int
    stop: int


@dataclass(frozen=True)
class Window:
    """`num_steps` steps from global step `first_step` on, all of one epoch, and the rows that they train."""

    epoch: int
    index: int
    first_step: int
    num_steps: int
    slices: tuple[RowSlice, ...]

    @property
    def num_rows(self) -> int:
        return sum(part.stop - part.start for part in self.slices)


def epoch_groups(groups: list[RowGroup], seed: int, epoch: int) -> list[RowGroup]:
    """The row groups of an epoch, each as often as its weight gives it, in the order of `groups`.

    Of weight 0.25, a quarter of a dataset's row groups in each epoch, and each once in four; of 1.5, each once or twice.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group.dataset, []).append(i)
    phases = np.zeros(len(groups))  # in [0, 1), evenly over a dataset: whose turn it is first
    for number, found in enumerate(members.values()):
        phases[found] = np.random.default_rng((seed, number, 1)).permutation(len(found)) / len(found)
    taken = [np.floor(number * np.array([group.weight for group in groups]) + phases) for number in (epoch, epoch + 1)]
    copies = (taken[1] - taken[0]).astype(int)
    return [group for group, count in zip(groups, copies, strict=True) for _ in range(count)]


def steps_per_epoch(groups: list[RowGroup], batch_rows: int) -> int:
    """The last step of an epoch takes what rows are left."""
    return -(-sum(group.num_rows for group in groups) // batch_rows)


def _slices(groups: list[RowGroup], ends: np.ndarray, start: int, stop: int) -> tuple[RowSlice, ...]:
    """Rows [start, stop) of the line that `groups` form; `ends` are the groups' ends on it."""
    found = []
    position = start
    for i in range(int(np.searchsorted(ends, start, side="right")), len(groups)):
        first = int(ends[i]) - groups[i].num_rows
        end = min(stop, int(ends[i]))
        found.append(RowSlice(groups[i].path, groups[i].index, position - first, end - first))
        position = end
        if position == stop:
            break
    return tuple(found)


def plan_windows(
    groups: list[RowGroup], seed: int, batch_rows: int, steps_per_window: int, num_steps: int, start_step: int = 0
) -> Iterator[Window]:
    """Windows that hold the steps from `start_step` to `num_steps`, over as many epochs as that takes.

    The first window may begin before `start_step`: its earlier steps are for the reader to leave out.
    """
    require(bool(groups), "the training shards hold no rows")
    epoch = epoch_step = 0  # the epoch's first step
    while epoch_step < num_steps:
        taken = epoch_groups(groups, seed, epoch)
        per_epoch = steps_per_epoch(taken, batch_rows)
        if start_step < epoch_step + per_epoch:
            order = np.random.default_rng((seed, epoch)).permutation(len(taken))
            line = [taken[i] for i in order]
            yield from _epoch_windows(line, epoch, epoch_step, batch_rows, steps_per_window, num_steps, start_step)
        epoch, epoch_step = epoch + 1, epoch_step + per_epoch


def _epoch_windows(
    line: list[RowGroup], epoch: int, epoch_step: int, batch_rows: int, steps_per_window: int, num_steps: int, start_step: int
) -> Iterator[Window]:
    """The windows of one epoch, whose first step is `epoch_step`, that hold steps from `start_step` to `num_steps`."""
    ends = np.cumsum([group.num_rows for group in line])
    per_epoch = steps_per_epoch(line, batch_rows)
    for index in range(max(0, start_step - epoch_step) // steps_per_window, -(-per_epoch // steps_per_window)):
        step = index * steps_per_window
        if epoch_step + step >= num_steps:
            return
        stop_step = min(step + steps_per_window, per_epoch)
        rows = _slices(line, ends, step * batch_rows, min(stop_step * batch_rows, int(ends[-1])))
        yield Window(epoch, index, epoch_step + step, stop_step - step, rows)


def plan_pass(groups: list[RowGroup]) -> Iterator[RowSlice]:
    """Every row group once, in order: for evaluation."""
    for group in groups:
        yield RowSlice(group.path, group.index, 0, group.num_rows)
