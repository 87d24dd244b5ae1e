"""Ray for the time of one search: its own on this machine, or an existing cluster's."""

import logging
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray
from ray.exceptions import AuthenticationError

from tune.errors import SearchError
from tune.options import LOCAL
from tune.tracking.fingerprint import package_folder
from tune.tracking.ledger import locked
from tune.trials.resources import Node, TrialResources

SOCKET_ROOM = 40
"""Longest temporary folder below which Ray's sockets still fit into the 107 bytes of a Unix socket's path."""

SESSION_PREFIX = "psalm-ray-"
SESSION_LOCK = "session.lock"

ENVIRONMENT = {
    # A trial's report waits for Train's next look at its workers.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Paths in settings are absolute, and nothing is to be written beside Ray's own files.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A search is rebuilt from its runs' records; Ray's snapshots of it are never read.
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    # Interrupts are handled here.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # On a busy machine Ray's own processes take longer to start than its raylet waits for them.
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_raylet_start_wait_time_s": "180",
    # A failed trial's reason is shown in one line; all of it is in error.txt in its folder.
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    # How an attempt ended is a result without the metric.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


class Interrupted(BaseException):
    """SIGINT or SIGTERM: the search ends in order."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@dataclass(frozen=True)
class Session:
    """A running Ray: its nodes, and whether it is to end."""

    nodes: list[Node]
    interrupted: Callable[[], Interrupted | None]
    """What signal has come, if any."""


@contextmanager
def ray_session(address: str, resources: TrialResources, machine: Node, polled: bool = False) -> Iterator[Session]:
    """Connect to ``address`` or, for ``local``, start Ray here.

    At the end the connection is closed; a Ray that was started here is gone with all its processes and files.

    Args:
        address: of a cluster, or ``local``.
        resources: of the trials that will run.
        machine: what Ray may use of this one.
        polled: a signal waits to be asked for by the session's ``interrupted``. Ray turns what is raised inside its
            calls into errors of its own, which code that handles those would take for a failed call.

    Raises:
        SearchError: there is no cluster at the address.
        Interrupted: on SIGINT or SIGTERM; a second one ends the process at once.
    """
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(max(1, int(resources.cpus_per_worker)))}
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    folder = None
    own = ExitStack()
    # Inherited by everything that Ray starts here; a runtime_env of the job would cost seconds in every trial.
    os.environ.update(environment)
    _silence_libraries()
    interrupts = _Interrupts()
    interrupts.catch()
    try:
        if address == LOCAL:
            folder = own.enter_context(_session_folder(_short_temporary_folder()))
            with _children_ignore_sigterm():
                ray.init(LOCAL, num_cpus=int(machine.cpus), num_gpus=int(machine.gpus), _temp_dir=str(folder), **quiet)
        else:
            _connect(address, environment, quiet)
        interrupts.catch()  # ray.init has its own handler for SIGTERM
        interrupts.check()
        interrupts.raise_at_once = not polled
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Session([Node(each.get("CPU", 0), each.get("GPU", 0)) for each in alive], interrupts.came)
    except Exception:
        interrupts.check()
        raise
    finally:
        interrupts.raise_at_once = False
        children = psutil.Process().children(recursive=True) if folder else []
        ray.shutdown()
        for process in psutil.wait_procs(children, timeout=10)[1]:
            process.kill()
        own.close()
        interrupts.restore()


def _connect(address: str, environment: Mapping[str, str], quiet: Mapping[str, Any]) -> None:
    """This project's own code travels to the nodes, so that they run what the search was started from."""
    modules = [str(package_folder(name)) for name in ("psalm", "tune")]
    try:
        ray.init(address, runtime_env={"env_vars": dict(environment), "py_modules": modules}, **quiet)
    except (ConnectionError, ValueError, RuntimeError, AuthenticationError) as error:
        raise SearchError(
            f"--address {address}: no Ray cluster lets this search in ({' '.join(str(error).split())}); check the "
            "address and, where the cluster asks for a token, RAY_AUTH_MODE=token and the token"
        ) from error


def _short_temporary_folder() -> str:
    folder = tempfile.gettempdir()
    return folder if len(folder) <= SOCKET_ROOM else "/tmp"


@contextmanager
def _session_folder(root: str) -> Iterator[Path]:
    """A folder for Ray's files, gone at the end; those of sessions that were killed go at the beginning."""
    for left in Path(root).glob(f"{SESSION_PREFIX}*/{SESSION_LOCK}"):
        with suppress(OSError), locked(left, wait=False):  # it is in use, someone else's, or just went
            shutil.rmtree(left.parent)
    with tempfile.TemporaryDirectory(prefix=SESSION_PREFIX, dir=root, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with _locked_from_the_start(folder / SESSION_LOCK):
            yield folder


@contextmanager
def _locked_from_the_start(path: Path) -> Iterator[None]:
    """A lock file that is locked before it has its name: nobody can take it for one that was left."""
    draft = path.with_suffix(".new")
    draft.touch()
    with locked(draft):
        draft.rename(path)
        yield


def _silence_libraries() -> None:
    """What libraries say while a search runs goes to Ray's log files, or nowhere; errors still show."""
    for name in ("ray", "ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.tune.tune").setLevel(logging.CRITICAL)  # repeats which trials failed
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)


@contextmanager
def _children_ignore_sigterm() -> Iterator[None]:
    """A scheduler or shell sends SIGTERM to the whole group; Ray must survive it to be shut down in order.

    Processes inherit the blocked signal. Ray blocks SIGINT for its own in the same way.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class _Interrupts:
    """Notes the first SIGINT or SIGTERM; the second then has its default effect."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.raise_at_once = False
        self._came: int | None = None
        self._previous = {each: signal.getsignal(each) for each in self.SIGNALS}

    def catch(self) -> None:
        """From now on, also where a library has put its own handler in between."""
        for each in self.SIGNALS:
            signal.signal(each, self._note)

    def came(self) -> Interrupted | None:
        """The first signal that has come."""
        return None if self._came is None else Interrupted(self._came)

    def check(self) -> None:
        """Raise ``Interrupted`` if a signal has come."""
        if self._came is not None:
            raise Interrupted(self._came) from None

    def restore(self) -> None:
        """As it was before, unless an interrupt is on its way out of the process."""
        if self._came is None:
            for each, handler in self._previous.items():
                signal.signal(each, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = number
        for each in self.SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        if self.raise_at_once:
            self.check()
