"""Where an actor is."""

import ray


def this_node() -> tuple[str, str]:
    """Id and address of this actor's node: the address Ray was started with, not one guessed from the routing table."""
    node_id = ray.get_runtime_context().get_node_id()
    return node_id, next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == node_id)
