"""How many CPU cores a process may use."""

import os


def usable_cores() -> int:
    """Returns the cores that this process may run on; where a system does not say (macOS, Windows), all there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def ranks_here() -> int:
    """Returns how many ranks the launcher has started on this machine, 1 without a launcher."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def cores_of_rank(ranks: int | None = None) -> int:
    """Returns a rank's part of the cores, at least one.

    Args:
        ranks: those that share the cores; None: those that have been started on this machine.
    """
    return max(1, usable_cores() // (ranks or ranks_here()))
