"""FFmpeg's processes: what they cannot do, and that none of their troubles is anybody else's."""

import importlib.util
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.audio.encode import encode
from tests.audio.fuzz import speech_like
from tests.conftest import ROOT
from tiny_audio.audio import foreign
from tiny_audio.audio.decode import AudioError, decode

M4A = encode(speech_like(1.0), "m4a")


def idle_process() -> subprocess.Popen:
    decode(M4A)
    return foreign._idle[-1].process


def test_a_process_opens_nothing_and_knows_no_secrets(monkeypatch):
    foreign._idle.clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    folder = Path(f"/proc/{idle_process().pid}")
    limits = {line[:26].strip(): line[26:].split()[0] for line in (folder / "limits").read_text().splitlines()}
    assert limits["Max open files"] == "3"
    assert limits["Max file size"] == "0"
    assert int(limits["Max address space"]) < 2**32
    assert int(limits["Max cpu time"]) <= 25
    assert "secret" not in (folder / "environ").read_text()


def test_a_process_is_kept_and_replaced_when_it_dies():
    process = idle_process()
    assert idle_process() is process
    process.kill()
    process.wait()
    assert idle_process() is not process


def test_a_file_that_hangs_or_kills_its_process_costs_itself_alone(monkeypatch):
    process = idle_process()
    process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(foreign, "LIMIT_S", 0.5)
    with pytest.raises(AudioError, match="not decoded within") as caught:
        decode(M4A)
    assert caught.value.reason == "damaged"
    assert process.returncode is not None
    monkeypatch.undo()
    idle_process()
    monkeypatch.setattr(foreign, "LIMIT_S", 0.001 - 30 / foreign.SLOWEST)  # over before the first of many quick answers
    with pytest.raises(AudioError, match="not decoded within"):
        decode(M4A)
    monkeypatch.undo()
    process = idle_process()
    process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(decode, M4A)
        time.sleep(0.3)
        process.kill()
        with pytest.raises(AudioError, match="ended its decoder"):
            answer.result(timeout=30)
    assert len(decode(M4A)) > 15_000


def test_a_process_that_leaves_by_itself_is_nobodys_trouble():
    process = idle_process()
    foreign._idle[-1].socket.shutdown(1)  # what it sees when it is told to go; it exits with 0
    process.wait(10)
    assert len(decode(M4A)) > 15_000


def test_files_without_end_are_decoded_by_one_process_after_the_other():
    short = encode(speech_like(0.05), "amr")
    processes = set()
    for _ in range(2100):
        decode(short)
        processes.add(foreign._idle[-1].process.pid)
    assert 2 <= len(processes) <= 4


def test_threads_share_few_processes():
    with ThreadPoolExecutor(12) as pool:
        lengths = set(pool.map(lambda _: len(decode(M4A)), range(48)))
    assert len(lengths) == 1
    assert len(foreign._idle) <= foreign.MAX_PROCESSES


def _decode_in_a_fork(_) -> int:
    return len(decode(M4A))


def test_a_forked_process_has_its_own():
    length = len(decode(M4A))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_decode_in_a_fork, range(4)) == [length] * 4
    assert len(decode(M4A)) == length


def test_no_process_outlives_the_one_that_decodes(tmp_path):
    (tmp_path / "a.m4a").write_bytes(M4A)
    code = (
        "import sys; from tiny_audio.audio import foreign; from tiny_audio.audio.decode import decode;"
        "decode(open(sys.argv[1], 'rb').read()); print(foreign._idle[0].process.pid)"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "a.m4a"], cwd=ROOT, capture_output=True, text=True, check=True)
    for _ in range(100):
        if not os.path.exists(f"/proc/{int(run.stdout)}/exe"):
            return
        time.sleep(0.1)
    raise AssertionError("the decoder is still there")


def test_without_pyav_the_refusal_names_format_and_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AudioError, match=r"mp4 .*pip install av"):
        decode(M4A)
