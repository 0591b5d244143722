"""Who may write to a run's folder: its latest start alone.

Workers may outlive their head node by a minute or more, and go on beside the start that took their place; two clusters may
be given the same run. The later start writes its token into the folder. Whoever finds another one there ends.
"""

from __future__ import annotations

from pathlib import Path

from tiny_audio.config import require
from tiny_audio.storage import put

CLAIM = "started_by"  # a file in a run's folder


def claim_run(run_dir: Path, token: str) -> None:
    """Takes the run over, for the start of that token, which no other has."""
    put(run_dir / CLAIM, token.encode())


def require_claim(run_dir: Path, token: str) -> None:
    """Asked before each write.

    Raises:
        ConfigError: another start has taken the run over.
    """
    taken = "the run was started again meanwhile, perhaps on another cluster; it goes on there, and ends here"
    require((run_dir / CLAIM).read_bytes() == token.encode(), taken)
