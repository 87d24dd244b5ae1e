"""A Ray cluster of several nodes on this host, in a process of its own: Ray reads its token when it is imported.

Prints the head's address; then answers commands, one a line: ``remove`` kills a node that has processors, ``held``
prints as JSON what lives on the cluster, an empty line ends it.
"""

import json
import sys
from typing import Any

import ray
from ray.cluster_utils import Cluster
from ray.util.state import list_actors, list_placement_groups


def main(nodes: int) -> None:
    """A head without processors, and nodes with one each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    say(cluster.address)
    for line in sys.stdin:
        match line.strip():
            case "remove":
                cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
                say("removed")
            case "held":
                say(json.dumps(held(cluster)))
            case _:
                break
    ray.shutdown()
    cluster.shutdown()


RAYS_OWN = "_AutoscalingCoordinatorActor"
"""An actor that Ray Train keeps once per cluster; it holds nothing."""


def held(cluster: Cluster) -> dict[str, Any]:
    """Classes of living actors, placement groups and processors in use."""
    if not ray.is_initialized():
        ray.init(cluster.address, log_to_driver=False)
    return {
        "actors": [
            actor.class_name for actor in list_actors() if actor.state != "DEAD" and actor.class_name != RAYS_OWN
        ],
        "placement_groups": sum(group.state != "REMOVED" for group in list_placement_groups()),
        "cpus": int(ray.cluster_resources().get("CPU", 0) - ray.available_resources().get("CPU", 0)),
    }


def say(text: str) -> None:
    """A line to who started this."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
