"""What goes wrong: families of faults, each made from a random source, begun at an instant, and ended again."""

from collections.abc import Callable, Iterator

from chaos.cluster import FAKETIME, Cluster
from chaos.faults.bells import bells, broker, crowd
from chaos.faults.database import backup, clock, convoy, deadlock, disk, poison
from chaos.faults.fault import Fault, Scene
from chaos.faults.network import commit, link
from chaos.faults.processes import backend, freeze, holders, kill, rolling

__all__ = ["FAMILIES", "Fault", "Scene", "missing"]

FAMILIES: dict[str, Callable[[Scene], Fault]] = {
    "kill": kill,
    "freeze": freeze,
    "holders": holders,
    "postgres": backend,
    "redis": broker,
    "bells": bells,
    "crowd": crowd,
    "links": link,
    "commit": commit,
    "clock": clock,
    "disk": disk,
    "poison": poison,
    "deadlock": deadlock,
    "convoy": convoy,
    "rolling": rolling,
    "backup": backup,
}


def missing(cluster: Cluster) -> Iterator[tuple[str, str]]:
    """Families that cannot be had here, and why."""
    if not FAKETIME.exists():
        yield "clock", "libfaketime is missing (Debian: apt-get install faketime)"
    if cluster.log_disk is None:
        yield "disk", "a file system for the log can be mounted by root only"
