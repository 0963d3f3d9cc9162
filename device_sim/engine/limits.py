"""What the machine allows, said before it bites: open files and local ports.

Every device is a socket: a file descriptor here, and on the way to one address and port of a broker
one of the local ports the kernel hands out. One that a proxy of this process carries, because its
network gets worse, has two more descriptors there. Both run out with an error in the middle of the
connect phase, so `prepare` raises the soft limit as far as it may and returns warnings in words.
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


def warnings(connections: int, files: int, ports: int, carried: int = 0) -> list[str]:
    """What will run out with this many connections."""
    found: list[str] = []
    need = files_for(connections, carried)
    if need > files:
        found.append(
            f"{connections} connections need {need} open files, the limit is {files}: "
            f"raise it with `ulimit -n {need}`"
        )
    if ports and connections > ports * 9 // 10:
        found.append(
            f"{connections} connections to one address come close to the {ports} local ports: "
            "widen net.ipv4.ip_local_port_range, or run from several addresses"
        )
    return found


def prepare(connections: int, carried: int = 0) -> list[str]:
    """Raise what can be raised for this many connections, and warn of the rest."""
    files = file_limit(files_for(connections, carried))
    return warnings(connections, files, local_ports(), carried)
