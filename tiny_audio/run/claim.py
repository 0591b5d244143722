"""The claim on a run's folder: only the run's latest start may write to it.

Workers may outlive their head node by a minute, and go on beside the start that took their place; two clusters may be given
the same run. The later start writes its token into the folder, and a start that finds another token there ends.
"""

from __future__ import annotations

from pathlib import Path

from tiny_audio.config import require
from tiny_audio.storage import put

CLAIM = "started_by"  # a file in a run's folder
TAKEN_OVER = "the run was started again meanwhile, perhaps on another cluster; it goes on there, and ends here"


def claim_run(run_dir: Path, token: str) -> None:
    """Takes the run over for the start with that token, which no other start has."""
    put(run_dir / CLAIM, token.encode())


def has_claim(run_dir: Path, token: str) -> bool:
    """Says whether the run is this start's."""
    return (run_dir / CLAIM).read_bytes() == token.encode()


def require_claim(run_dir: Path, token: str) -> None:
    """Checks, before each write, that the run is still this start's.

    Raises:
        ConfigError: another start has taken the run over.
    """
    require(has_claim(run_dir, token), TAKEN_OVER)
