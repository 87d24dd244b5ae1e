"""Concurrency from resources: as many trials as fit, and a refusal with both numbers where none does."""

from pathlib import Path

import pytest

from tune.errors import SearchError
from tune.trials.resources import Node, TrialResources, _usable_cpus, this_machine


@pytest.mark.parametrize(
    ("resources", "nodes", "expected"),
    [
        (TrialResources(1, 1, 0), [Node(2, 0)], 2),
        (TrialResources(2, 1, 0), [Node(5, 0)], 2),
        (TrialResources(1, 0.1, 0), [Node(0.3, 0)], 3),  # 0.3 / 0.1 < 3 in floats
        (TrialResources(1, 1, 0.5), [Node(16, 2)], 4),
        (TrialResources(1, 1, 0.4), [Node(16, 3)], 6),  # a fraction lies on one device: 2 on each, not 7 in all
        (TrialResources(1, 1, 0.3), [Node(16, 1)], 3),
        (TrialResources(2, 4, 1), [Node(16, 8)], 2),  # the CPUs end first
        (TrialResources(1, 1, 2), [Node(16, 3), Node(16, 3)], 2),  # a worker's GPUs are on one node
        (TrialResources(1, 2, 0), [Node(3, 0), Node(3, 0)], 2),  # not 6 // 2
        (TrialResources(4, 1, 1), [Node(8, 2), Node(8, 2)], 1),  # a trial may span nodes
    ],
)
def test_capacity(resources: TrialResources, nodes: list[Node], expected: int) -> None:
    assert resources.capacity(nodes) == expected
    assert resources.concurrency(nodes, 100) == expected
    assert resources.concurrency(nodes, 1) == 1


@pytest.mark.parametrize(
    ("resources", "nodes", "message"),
    [
        (TrialResources(1, 1, 1), [Node(4, 0)], r"needs 1 GPUs .*there are 0"),
        (
            TrialResources(4, 1, 2),
            [Node(64, 4)],
            r"needs 8 GPUs \(4 workers_per_trial x 2 gpus_per_worker\).*there are 4",
        ),
        (TrialResources(1, 8, 0), [Node(2, 0)], r"needs 8 CPUs .*there are 2"),
        (TrialResources(1, 4, 0), [Node(3, 0), Node(3, 0)], r"1 workers with 4 CPUs.*2 nodes have room for 0"),
        (TrialResources(3, 2, 0), [Node(3, 0), Node(3, 0)], r"room for 2 \(at most 1 on one\)"),
    ],
)
def test_what_can_never_run_is_refused_with_both_numbers(
    resources: TrialResources, nodes: list[Node], message: str
) -> None:
    with pytest.raises(SearchError, match=message):
        resources.concurrency(nodes, 2)


@pytest.mark.parametrize(("content", "limit"), [("200000 100000", 2), ("50000 100000", 1), ("max 100000", 10_000)])
def test_a_containers_quota_counts(tmp_path: Path, content: str, limit: int) -> None:
    quota = tmp_path / "cpu.max"
    quota.write_text(content)
    everything = _usable_cpus(tmp_path / "absent")
    assert _usable_cpus(quota) == min(everything, limit)


def test_this_machine_has_a_processor() -> None:
    assert this_machine().cpus >= 1
