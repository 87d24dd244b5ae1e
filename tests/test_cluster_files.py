"""Files for clusters say what Ray, KubeRay and Slurm understand, and the Slurm script does what it promises."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from psalm.train.records import read_records
from tune.options import parse_options
from tune.trials.conductor import ENDING_SECONDS

REPO = Path(__file__).resolve().parents[1]
CLUSTER = REPO / "experiments" / "cluster"
LAUNCHER_FILES = ["ray_cluster.yaml", "ray_cluster_local.yaml"]
SCRIPTS = ["search.sh", "slurm.sh"]


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


# ---- `ray up`


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_the_cluster_launcher_accepts_the_file(name: str) -> None:
    validate_config(prepare_config(load(name)))


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_a_cluster_has_a_token_on_every_machine_and_its_dashboard_on_loopback(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token ray start" in command
        assert "--dashboard-host" not in command  # its default is loopback; the launcher's own for AWS is not


@pytest.mark.parametrize("name", LAUNCHER_FILES)
def test_commands_of_a_cluster_are_shell(name: str) -> None:
    config = load(name)
    for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        for command in config[key]:
            subprocess.run(["bash", "-n", "-c", command], check=True)


def test_a_cluster_keeps_all_its_workers() -> None:
    config = load("ray_cluster.yaml")
    workers = {name: kind for name, kind in config["available_node_types"].items() if name != config["head_node_type"]}
    assert [kind["min_workers"] == kind["max_workers"] for kind in workers.values()] == [True]
    assert sum(kind["max_workers"] for kind in workers.values()) == config["max_workers"]


def test_images_have_the_versions_that_are_pinned() -> None:
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REPO / "constraints.txt").read_text(), re.MULTILINE))
    assert ray.__version__ == pinned["ray"]
    image = f"rayproject/ray:{pinned['ray']}-py311-gpu"
    assert load("ray_cluster.yaml")["docker"]["image"] == image
    assert f"FROM {image}\n" in (CLUSTER / "Dockerfile").read_text()
    assert load("rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]


# ---- KubeRay


def strict(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": False}


def listed(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}
TEXTS = {"type": "object", "additionalProperties": TEXT}
AMOUNTS = {"type": "object", "additionalProperties": {"type": "string", "pattern": r"^[0-9]+([KMGTP]i|m)?$"}}
CONTAINER = strict(
    ["name", "image"],
    name=TEXT,
    image=TEXT,
    env=listed(strict(["name"], name=TEXT, value=TEXT)),
    resources=strict([], limits=AMOUNTS, requests=AMOUNTS),
    volumeMounts=listed(strict(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)
POD = strict(
    ["spec"],
    spec=strict(
        ["containers"],
        containers=listed(CONTAINER),
        tolerations=listed(strict([], key=TEXT, operator={"enum": ["Exists", "Equal"]}, effect=TEXT)),
        volumes=listed(
            strict(
                ["name"],
                name=TEXT,
                persistentVolumeClaim=strict(["claimName"], claimName=TEXT),
                emptyDir=strict([], medium={"enum": ["", "Memory"]}),
            )
        ),
    ),
)
RAY_JOB = strict(
    ["apiVersion", "kind", "metadata", "spec"],
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=strict(["name"], name=TEXT),
    spec=strict(
        ["rayClusterSpec"],
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        entrypoint=TEXT,
        rayClusterSpec=strict(
            ["headGroupSpec"],
            rayVersion=TEXT,
            authOptions=strict([], mode={"enum": ["disabled", "token"]}),
            headGroupSpec=strict(["rayStartParams", "template"], rayStartParams=TEXTS, template=POD),
            workerGroupSpecs=listed(
                strict(
                    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
                    groupName=TEXT,
                    replicas=COUNT,
                    minReplicas=COUNT,
                    maxReplicas=COUNT,
                    rayStartParams=TEXTS,
                    template=POD,
                )
            ),
        ),
    ),
)
"""The fields of KubeRay's RayJob that the file uses, by the types and required names of its definition."""


def test_kuberay_accepts_the_file() -> None:
    jsonschema.validate(load("rayjob.yaml"), RAY_JOB)


def test_pods_mount_what_they_have() -> None:
    cluster = load("rayjob.yaml")["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_job_runs_a_search_that_can_go_on() -> None:
    spec = load("rayjob.yaml")["spec"]
    (container,) = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    shell, script, *flags = shlex.split(spec["entrypoint"])
    assert (shell, script.removeprefix("/home/ray/psalm-deformable/")) == ("bash", "experiments/cluster/search.sh")
    options = parse_options(["--output-dir", env["OUTPUT_DIR"], *env["OPTIONS"].split(), *flags])
    assert options.address == "auto"
    config = (REPO / options.config).read_text()
    assert set(re.findall(r"\$\{(\w+)\}", config)) <= env.keys()
    parse_options(["--resume", env["OUTPUT_DIR"], *env["OPTIONS"].split()])


# ---- scripts


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_shell(name: str) -> None:
    subprocess.run(["bash", "-n", CLUSTER / name], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", CLUSTER / name], check=True)


def test_slurm_tells_of_the_end_early_enough() -> None:
    text = (CLUSTER / "slurm.sh").read_text()
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))
    told = re.fullmatch(r"B:TERM@(\d+)", directives["signal"])
    assert told is not None
    assert int(told[1]) >= ENDING_SECONDS + 60
    assert {"requeue", "nodes", "ntasks-per-node", "cpus-per-task", "gpus-per-node", "time"} <= directives.keys()


@pytest.mark.parametrize("begun", [False, True], ids=["new", "begun"])
def test_a_search_is_begun_or_gone_on_with(begun: bool, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "python"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    runs = tmp_path / "runs with spaces"
    (runs / "tiny").mkdir(parents=True)
    if begun:
        (runs / "tiny" / "tracking.json").touch()
    found = subprocess.run(
        ["bash", CLUSTER / "search.sh", "--set", "max_steps=20"],
        env=os.environ
        | {"PATH": f"{program.parent}:{os.environ['PATH']}", "OUTPUT_DIR": str(runs), "OPTIONS": "--time-budget 8h"},
        capture_output=True,
        text=True,
        check=True,
    )
    what = ["--resume", f"{runs}/tiny"] if begun else ["--output-dir", str(runs)]
    rest = [] if begun else ["--set", "max_steps=20"]
    assert found.stdout.splitlines() == ["tune/search.py", *what, "--time-budget", "8h", *rest]


SRUN = """#!/usr/bin/env bash
while [[ "$1" == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
case "$1" in
  show) printf 'node%s\\n' 1 2 ;;
  *) echo "$@" >> "$SLURM_LOG" ;;
esac
"""


class Slurm:
    """A job of two nodes, which are this machine: ``srun`` runs its command here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)
        self.job = str(os.getpid())
        self.asked = folder / "scontrol.log"
        self.output_dir = folder / "runs"
        venv = folder / "venv"
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "activate").touch()

    def run(self, *flags: str) -> subprocess.Popen[bytes]:
        python = Path(sys.executable).parent
        environment = {
            "PATH": f"{self.folder / 'bin'}:{python}:{os.environ['PATH']}",
            "SLURM_LOG": str(self.asked),
            "SLURM_SUBMIT_DIR": str(REPO),
            "SLURM_JOB_ID": self.job,
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
            "VENV": str(self.folder / "venv"),
            "OUTPUT_DIR": str(self.output_dir),
        }
        with (self.folder / "job.log").open("ab") as log:
            return subprocess.Popen(
                ["bash", CLUSTER / "slurm.sh", *flags], env=os.environ | environment, stdout=log, stderr=log
            )

    def processes(self) -> list[str]:
        """What still runs of the job's Ray."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            command = " ".join(process.info["cmdline"] or ())
            if f"/tmp/ray-{self.job}" in command:
                found.append(command)
        return found


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path)
    yield slurm
    assert slurm.processes() == []
    assert not Path(f"/tmp/ray-{slurm.job}").exists()


@pytest.mark.full
def test_a_job_that_is_told_to_end_goes_on_when_it_runs_again(slurm: Slurm) -> None:
    flags = ["--num-samples", "2", "--set", "max_steps=60", "--set", "eval_steps=20", "--set", "save_steps=20"]
    job = slurm.run(*flags)
    search = slurm.output_dir / "tiny"
    deadline = time.monotonic() + 300
    while not any(record["kind"] == "metrics" for record in read_records(search / "trials" / "0000")):
        assert time.monotonic() < deadline
        assert job.poll() is None, (slurm.folder / "job.log").read_text()
        time.sleep(0.5)
    told = time.monotonic()
    job.send_signal(signal.SIGTERM)
    assert job.wait(120) == 128 + signal.SIGTERM
    assert time.monotonic() - told < 110
    assert slurm.asked.read_text() == f"requeue {slurm.job}\n"
    assert slurm.processes() == []

    assert slurm.run(*flags).wait(400) == 0, (slurm.folder / "job.log").read_text()
    assert slurm.asked.read_text() == f"requeue {slurm.job}\n"  # not again
    assert [path.name for path in slurm.output_dir.iterdir() if path.is_dir() and path.name != "mlartifacts"] == [
        "tiny"
    ]
    for number in (0, 1):
        events = [r["event"] for r in read_records(search / "trials" / f"{number:04d}") if r["kind"] == "event"]
        assert events[-1] in ("completed", "stopped")
