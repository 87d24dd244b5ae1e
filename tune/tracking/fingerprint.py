"""What a run was made with: the project's own sources, their git state, the versions of what they stand on."""

import hashlib
import importlib.metadata
import importlib.util
import platform
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGES = (
    "accelerate",
    "deepspeed",
    "mlflow",
    "numpy",
    "optuna",
    "pillow",
    "pycocotools",
    "ray",
    "safetensors",
    "scipy",
    "tokenizers",
    "torch",
    "transformers",
)
_GIT_SECONDS = 10


@dataclass(frozen=True)
class GitState:
    """The commit that the sources come from; None where they are not in a git checkout."""

    commit: str | None
    dirty: bool | None


def package_folder(name: str) -> Path:
    """Where an installed package's sources lie, without importing it. Raises ModuleNotFoundError."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"package {name!r} is not installed; run: pip install -e .")
    return Path(spec.origin).parent


def source_files(folders: tuple[Path, ...] | None = None) -> dict[str, str]:
    """``{"psalm/constants.py": sha256, ...}`` of every file of psalm/ and tune/ but byte code and hidden files."""
    if folders is None:
        folders = (package_folder("psalm"), package_folder("tune"))
    files = {}
    for folder in folders:
        for path in folder.rglob("*"):
            inside = path.relative_to(folder)
            hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
            if path.is_file() and not hidden and path.suffix != ".pyc":
                files[f"{folder.name}/{inside.as_posix()}"] = hashlib.sha256(path.read_bytes()).hexdigest()
    return dict(sorted(files.items()))


def source_fingerprint(files: Mapping[str, str]) -> str:
    """One hash over the paths and bytes of ``source_files()``: equal only if every file is."""
    digest = hashlib.sha256()
    for path, content in sorted(files.items()):
        digest.update(f"{path}\0{content}\n".encode())
    return digest.hexdigest()[:16]


def git_state(folder: Path | None = None) -> GitState:
    """The checkout that tracks ``folder`` (default: psalm/); a folder that git merely surrounds is in none."""
    if folder is None:
        folder = package_folder("psalm")
    if not _git(folder, "ls-files", "."):
        return GitState(None, None)
    commit = _git(folder, "rev-parse", "HEAD")
    changes = _git(folder, "status", "--porcelain")
    return GitState(commit, None if changes is None else bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where there is no git, no checkout, no commit or no permission."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=_GIT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """``{"python": "3.11.7", "torch": ..., ...}``; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def provenance(files: Mapping[str, str]) -> dict[str, str]:
    """A run's tags that say what it is made with; ``files``: of ``source_files()``."""
    git = git_state()
    tags = {"source_fingerprint": source_fingerprint(files), "hostname": socket.gethostname()}
    if git.commit is not None:
        tags |= {"git_commit": git.commit, "git_dirty": str(git.dirty).lower()}
    return tags | {f"version.{package}": version for package, version in versions().items()}
