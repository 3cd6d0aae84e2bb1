"""Which build this is."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache

from fabstir_site.environment import CHECKOUT

VERSION = "0.1.0"


@lru_cache(maxsize=1)
def git_revision() -> str:
    """The checkout's commit, with "-dirty" if files differ from it; "unknown" outside a git checkout."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    described = subprocess.run(  # noqa: S603 - fixed arguments
        [git, "-C", str(CHECKOUT), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"],
        capture_output=True,
        text=True,
        timeout=10,
        check=False,
    )
    return described.stdout.strip() or "unknown"
