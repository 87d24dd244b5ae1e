"""A store that cannot be used is refused within seconds, with one line."""

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tune.tracking import connection
from tune.tracking.ledger import TrackingError
from tune.tracking.tracker import Tracker


class Silent(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        time.sleep(2)

    def log_message(self, *args: Any) -> None:
        pass


class Stranger(Silent):
    def do_POST(self) -> None:
        self.send_response(404)
        self.end_headers()
        self.wfile.write(b"<html>no such page</html>")


@pytest.fixture
def serve() -> Iterator[Callable[[type], str]]:
    servers = []

    def start(handler: type) -> str:
        server = HTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def refusal(uri: str, tmp_path: Path) -> str:
    """The one line that ``check`` refuses a URI with, within seconds."""
    start = time.monotonic()
    with pytest.raises(TrackingError) as error:
        Tracker(uri, tmp_path / "search", "tiny").check()
    assert time.monotonic() - start < 5
    message = str(error.value)
    assert "\n" not in message
    return message


def test_nobody_listens(tmp_path: Path) -> None:
    port = free_port()
    message = refusal(f"http://127.0.0.1:{port}", tmp_path)
    assert message.startswith(f"tracking URI 'http://127.0.0.1:{port}': ")
    assert message.endswith("; start the server or check the address")
    assert "refused" in refusal(f"postgresql://me:secret@127.0.0.1:{port}/db", tmp_path).lower()


def test_a_server_that_does_not_answer(
    tmp_path: Path, serve: Callable[[type], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    assert "timed out" in refusal(serve(Silent), tmp_path).lower()


def test_a_server_that_is_not_mlflow(tmp_path: Path, serve: Callable[[type], str]) -> None:
    assert "404" in refusal(serve(Stranger), tmp_path)


def test_users_are_not_kept_waiting() -> None:
    assert int(os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]) <= 5
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"


def test_files_that_are_no_database(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no database " * 100)
    assert "file is not a database" in refusal(f"sqlite:///{text}", tmp_path)
    assert "unable to open database file" in refusal(f"sqlite:///{tmp_path}", tmp_path)
    assert "Not a directory" in refusal(f"sqlite:///{text}/x/mlflow.db", tmp_path)


@pytest.mark.parametrize("uri", ["runs/mlflow", "file:///tmp/mlruns", "sqlite://", "foo://x", ""])
def test_what_is_no_store(uri: str, tmp_path: Path) -> None:
    assert "give sqlite:////absolute/path/mlflow.db or the server's" in refusal(uri, tmp_path)


def test_a_password_is_not_shown(tmp_path: Path) -> None:
    uri = f"postgresql://me:secret@127.0.0.1:{free_port()}/db"
    assert "secret" not in refusal(uri, tmp_path)
    tracker = Tracker(uri, tmp_path, "tiny")
    tracker._ledger.save()
    assert "secret" not in (tmp_path / "tracking.json").read_text()


def test_a_new_database_without_pages_of_logs_and_a_deleted_experiment(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One test, because creating a database takes seconds."""
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    client = connection.connect(f"sqlite:///{tmp_path}/new/mlflow.db")
    assert caplog.text == ""
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    client.delete_experiment(client.create_experiment("tiny"))
    with pytest.raises(TrackingError, match="experiment 'tiny' was deleted; give the search another name"):
        Tracker(f"sqlite:///{tmp_path}/new/mlflow.db", tmp_path, "tiny").check()


def test_relative_databases_are_made_absolute() -> None:
    assert connection.absolute_uri("sqlite:///runs/mlflow.db") == f"sqlite:///{Path.cwd()}/runs/mlflow.db"
    assert connection.absolute_uri("http://host:5000") == "http://host:5000"


QUIET = """
import sys
from tune.tracking.tracker import Tracker
tracker = Tracker(sys.argv[1], sys.argv[2], "tiny")
tracker.check()
"""


@pytest.mark.full
def test_two_first_searches_at_once_and_no_pages_of_logs(tmp_path: Path) -> None:
    """Creating one database twice at a time fails in MLflow itself; and it logs sixty lines."""
    command = [sys.executable, "-c", QUIET, f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "search")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=tmp_path) for _ in "ab"]
    outputs = [process.communicate(timeout=600)[0].decode() for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert outputs == ["", ""]
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db"}
