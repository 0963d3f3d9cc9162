"""What the machine allows, said before it bites: open files and local ports; and what was used.

Every device is a socket: a file descriptor here, and on the way to one address and port of a broker
one of the local ports the kernel hands out. One that a proxy of this process carries, because its
network gets worse, has two more descriptors there. Both run out with an error in the middle of the
connect phase, so `prepare` raises the soft limit as far as it may and returns warnings in words.
Workers inherit the limit of open files from their parent; ports they share with each other.
"""

import resource
from pathlib import Path
from typing import Final

SPARE_FILES: Final = 64
_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def file_limit(need: int) -> int:
    """Make room for `need` descriptors as far as this process may; the limit that holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return need
    if need > soft:
        wanted = need if hard == resource.RLIM_INFINITY else min(need, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(wanted, soft), hard))
        except (ValueError, OSError):
            return soft
        soft = max(wanted, soft)
    return soft


def local_ports(path: Path = _PORT_RANGE) -> int:
    """How many ports the kernel has for outgoing connections; 0 when it doesn't say."""
    try:
        low, high = path.read_text().split()
        return int(high) - int(low) + 1
    except (OSError, ValueError):
        return 0


def files_for(connections: int, carried: int = 0) -> int:
    """How many descriptors so many connections need, `carried` of them through a proxy in here."""
    return connections + 2 * carried + SPARE_FILES


def warnings(
    connections: int, files: int, ports: int, carried: int = 0, of_all: int = 0
) -> list[str]:
    """What will run out with this many connections of a process, `of_all` of all processes."""
    found: list[str] = []
    need = files_for(connections, carried)
    of_all = of_all or connections
    if need > files:
        whose = " of a worker" if of_all > connections else ""
        found.append(
            f"{connections} connections{whose} need {need} open files, the limit is {files}: "
            f"raise it with `ulimit -n {need}`"
        )
    if ports and of_all > ports * 9 // 10:
        found.append(
            f"{of_all} connections to one address come close to the {ports} local ports: "
            "widen net.ipv4.ip_local_port_range, or run from several addresses"
        )
    return found


def share_of(count: int, workers: int) -> int:
    """How many of a group's devices a worker drives at the most; each drives one at least."""
    return max(1, -(-count // workers))


def prepare(counts: list[int], carried: list[int], workers: int = 1) -> list[str]:
    """Raise what can be raised for groups of so many devices, and warn of the rest.

    `carried` are the sizes of those groups among them whose connections go through a proxy.
    """
    connections = sum(share_of(count, workers) for count in counts)
    through = sum(share_of(count, workers) for count in carried)
    files = file_limit(files_for(connections, through))
    of_all = sum(share_of(count, workers) * workers for count in counts)
    return warnings(connections, files, local_ports(), through, max(of_all, connections))


def peak_memory() -> int:
    """Bytes of memory that this process had resident at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
