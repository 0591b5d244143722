from importlib.util import find_spec

from tiny_audio.data import stream
from tiny_audio.lab import process_names


def test_processes_are_named_after_what_runs_in_them():
    """A drill that looks for a name that no process has would wait in vain."""
    assert callable(getattr(stream, process_names.DECODE_WORKER))
    assert find_spec(process_names.TRAIN_DRIVER)
