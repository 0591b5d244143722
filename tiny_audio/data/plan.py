"""Which rows train in which order: a function of (footers, seed, step) alone. Planning reads no audio.

An epoch takes every row group as often as its dataset's weight says, shuffles them, joins their rows end to end and
cuts the line into windows of whole steps. A window is the unit of reading: its rows are decoded and shuffled together.
Since the plan depends neither on the number of workers nor on what ran before, a step number is all that a checkpoint
must keep of the position in the data: `plan_windows` starts at that step without reading anything of the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tiny_audio.config import require

MAX_SLICE_ROWS = 1000  # that a task of a pass decodes: their samples must fit its memory


@dataclass(frozen=True, slots=True)  # there may be 100,000
class RowGroup:
    """A row group of a Parquet file, and how often an epoch takes it."""

    path: str
    index: int
    num_rows: int
    dataset: str = ""  # as the config names it; all groups of a dataset have its weight
    weight: float = 1.0
    file_id: str = ""  # where the file has no IDs: what those of its rows begin with


@dataclass(frozen=True)
class RowSlice:
    """The rows [start, stop) of a row group."""

    path: str
    row_group: int
    start: int
    stop: int
    dataset: str = ""
    file_id: str = ""  # as the row group's


def slice_of(group: RowGroup, start: int, stop: int) -> RowSlice:
    """Cuts the rows [start, stop) out of a row group."""
    return RowSlice(group.path, group.index, start, stop, group.dataset, group.file_id)


@dataclass(frozen=True)
class Window:
    """The `num_steps` steps from global step `first_step` on, all of one epoch, and the rows that they train."""

    epoch: int
    index: int
    first_step: int
    num_steps: int
    slices: tuple[RowSlice, ...]

    @property
    def num_rows(self) -> int:
        return sum(part.stop - part.start for part in self.slices)


def epoch_groups(groups: Sequence[RowGroup], seed: int, epoch: int) -> list[RowGroup]:
    """Returns the row groups of an epoch in the order of `groups`, each as often as its weight says.

    A weight of 0.25 takes a quarter of a dataset's row groups in each epoch, and each of them once in four epochs; a weight
    of 1.5 takes each once or twice.
    """
    members: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        members.setdefault(group.dataset, []).append(i)
    phases = np.zeros(len(groups))  # in [0, 1), evenly over a dataset: they say whose turn it is first
    for number, places in enumerate(members.values()):
        phases[places] = np.random.default_rng((seed, number, 1)).permutation(len(places)) / len(places)
    taken = [np.floor(number * np.array([group.weight for group in groups]) + phases) for number in (epoch, epoch + 1)]
    copies = (taken[1] - taken[0]).astype(int)
    return [group for group, count in zip(groups, copies, strict=True) for _ in range(count)]


def steps_per_epoch(groups: Sequence[RowGroup], batch_rows: int) -> int:
    """Counts the steps over all rows of `groups`; the last one takes the rows that are left."""
    return -(-sum(group.num_rows for group in groups) // batch_rows)


def _slices(groups: list[RowGroup], ends: np.ndarray, start: int, stop: int) -> tuple[RowSlice, ...]:
    """Cuts rows [start, stop) out of the line that `groups` form; `ends` are the groups' ends on it."""
    slices = []
    position = start
    for i in range(int(np.searchsorted(ends, start, side="right")), len(groups)):
        first = int(ends[i]) - groups[i].num_rows
        end = min(stop, int(ends[i]))
        slices.append(slice_of(groups[i], position - first, end - first))
        position = end
        if position == stop:
            break
    return tuple(slices)


def plan_windows(
    groups: Sequence[RowGroup], seed: int, batch_rows: int, steps_per_window: int, num_steps: int, start_step: int = 0
) -> Iterator[Window]:
    """Yields the windows that hold the steps from `start_step` to `num_steps`, over as many epochs as that takes.

    The first window may begin before `start_step`; its reader leaves the earlier steps out.

    Raises:
        ConfigError: there are no row groups.
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
    """Yields those windows of one epoch, whose first step is `epoch_step`, that hold steps from `start_step` to `num_steps`."""
    ends = np.cumsum([group.num_rows for group in line])
    per_epoch = steps_per_epoch(line, batch_rows)
    for index in range(max(0, start_step - epoch_step) // steps_per_window, -(-per_epoch // steps_per_window)):
        step = index * steps_per_window
        if epoch_step + step >= num_steps:
            return
        stop_step = min(step + steps_per_window, per_epoch)
        rows = _slices(line, ends, step * batch_rows, min(stop_step * batch_rows, int(ends[-1])))
        yield Window(epoch, index, epoch_step + step, stop_step - step, rows)


def plan_pass(groups: Sequence[RowGroup]) -> Iterator[RowSlice]:
    """Yields every row once, in order, for validation and evaluation: a row group at a time, or a part of a very large one."""
    for group in groups:
        for start in range(0, group.num_rows, MAX_SLICE_ROWS):
            yield slice_of(group, start, min(start + MAX_SLICE_ROWS, group.num_rows))
