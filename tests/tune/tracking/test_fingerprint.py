"""A changed byte, name or file changes the fingerprint; git is asked, and may be absent."""

import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tune.tracking import fingerprint
from tune.tracking.fingerprint import GitState, git_state, provenance, source_files, source_fingerprint, versions


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout" / "psalm"
    (folder / "model").mkdir(parents=True)
    (folder / "a.py").write_text("x = 1\n")
    (folder / "model" / "b.json").write_text("{}")
    return folder


def of(folder: Path) -> str:
    return source_fingerprint(source_files((folder,)))


def test_files_are_named_from_the_package(package: Path) -> None:
    assert list(source_files((package,))) == ["psalm/a.py", "psalm/model/b.json"]


def test_same_bytes_elsewhere_are_the_same_sources(package: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(package, tmp_path / "elsewhere" / "psalm")
    assert of(copy) == of(package)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: (p / "a.py").write_text("x = 2\n"),
        lambda p: (p / "a.py").rename(p / "c.py"),
        lambda p: (p / "new.py").touch(),
        lambda p: (p / "model" / "b.json").unlink(),
    ],
    ids=["byte", "name", "new", "gone"],
)
def test_any_change_is_seen(package: Path, change) -> None:  # type: ignore[no-untyped-def]
    before = of(package)
    change(package)
    assert of(package) != before


def test_byte_code_and_hidden_files_are_no_sources(package: Path) -> None:
    before = of(package)
    (package / "__pycache__").mkdir()
    (package / "__pycache__" / "a.cpython-311.pyc").write_bytes(b"x")
    (package / ".a.py.swp").write_bytes(b"x")
    (package / "model" / "old.pyc").write_bytes(b"x")
    assert of(package) == before


def test_the_project_itself() -> None:
    files = source_files()
    assert "psalm/constants.py" in files
    assert "tune/tracking/fingerprint.py" in files


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_git_commit_and_changes(package: Path) -> None:
    root = package.parent
    git(root, "init", "-q")
    assert git_state(package) == GitState(None, None), "a checkout that does not track the sources says nothing of them"
    git(root, "add", "psalm")
    git(root, "commit", "-q", "-m", "first")
    clean = git_state(package)
    assert clean.commit is not None
    assert len(clean.commit) == 40
    assert clean.dirty is False
    (package / "a.py").write_text("x = 3\n")
    assert git_state(package) == GitState(clean.commit, True)


def test_no_checkout_or_no_git(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert git_state(package) == GitState(None, None)
    monkeypatch.setenv("PATH", "")
    assert git_state(package) == GitState(None, None)


def test_versions_name_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "PACKAGES", ("torch", "no-such-package"))
    found = versions()
    assert set(found) == {"python", "torch"}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


def test_provenance_as_tags(package: Path) -> None:
    files = source_files((package,))
    tags = provenance(files)
    assert tags["source_fingerprint"] == source_fingerprint(files)
    assert tags["hostname"] == socket.gethostname()
    assert tags["version.python"] == versions()["python"]
    assert set(map(type, tags.values())) == {str}
