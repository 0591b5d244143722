"""Mutated files of every format: only AudioError comes out, in time, and no half of a file passes for the whole."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.audio.encode import FORMATS
from tests.audio.fuzz import fuzz
from tests.conftest import ROOT

MUTATIONS = 20_000
# These promise nothing beyond their last frame, packet or page: a cut exactly there cannot be told.
UNPROMISED = ("aac", "amr", "mp3 without a tag", "mpeg", "mpegts", "mpga", "ogg opus", "ogg vorbis", "webm as browsers record it")


def require_harmless(report: dict, name: str, count: int) -> None:
    assert not report["errors"], report["errors"][:5]
    assert len(report["unsaid"]) <= (count // 10 * 0.03 + 2) * (name in UNPROMISED) or name == "mpeg", report["unsaid"][:20]


@pytest.mark.parametrize("name", FORMATS)
def test_a_few_mutated_files_are_taken_or_refused(name):
    require_harmless(fuzz(name, 40), name, 40)


def _in_its_own_process(name: str) -> dict:
    command = [sys.executable, "-m", "tests.audio.fuzz", name, str(MUTATIONS)]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=1200)
    return (
        json.loads(run.stdout.splitlines()[-1])
        if run.returncode == 0
        else {"errors": [f"exit code {run.returncode}"], "unsaid": []}
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_mutated_file_of_any_format_does_harm():
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        reports = dict(zip(FORMATS, pool.map(_in_its_own_process, FORMATS), strict=True))
    for name, report in reports.items():
        print(f"{name:28}", {key: value if isinstance(value, (int, float)) else len(value) for key, value in report.items()})
    for name, report in reports.items():
        require_harmless(report, name, MUTATIONS)
        assert report["slowest_s"] < 30, name
        assert report["grown_mib"] < 100, name
