"""The claim on a run's folder: only the run's latest start may write to it.

Workers may outlive their head node by a minute or more, and go on beside the start that took their place; two clusters may
be given the same run. The later start writes its token into the folder, and a start that finds another token there ends.
"""

from __future__ import annotations

from pathlib import Path

from tiny_audio.config import require
from tiny_audio.storage import put

CLAIM = "started_by"  # a file in a run's folder


def claim_run(run_dir: Path, token: str) -> None:
    """Takes the run over for the start with that token, which no other start has."""
    put(run_dir / CLAIM, token.encode())


def require_claim(run_dir: Path, token: str) -> None:
    """Checks, before each write, that the run is still this start's.

    Raises:
        ConfigError: another start has taken the run over.
    """
    taken = "the run was started again meanwhile, perhaps on another cluster; it goes on there, and ends here"
    require((run_dir / CLAIM).read_bytes() == token.encode(), taken)
