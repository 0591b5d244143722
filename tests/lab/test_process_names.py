from importlib.util import find_spec

from ray.data._internal.iterator.stream_split_iterator import SplitCoordinator
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker

from tiny_audio.data import stream
from tiny_audio.lab import process_names


def test_processes_are_named_after_what_runs_in_them():
    """A drill that looks for a name that no process has would wait in vain."""
    assert callable(getattr(stream, process_names.DECODE_WORKER))
    assert find_spec(process_names.TRAIN_DRIVER)
    assert RayTrainWorker.__name__ == process_names.TRAIN_WORKER
    assert TrainController.__name__ == process_names.CONTROLLER
    assert process_names.SPLITTER in repr(SplitCoordinator)
