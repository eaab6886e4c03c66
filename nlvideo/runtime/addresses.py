"""Which address and which interface other nodes reach this machine by.

Debian gives a machine's own name the address 127.0.1.1 in /etc/hosts, so on that machine the name says nothing about
where others find it.
"""

import ipaddress
import os
import socket
import struct
from contextlib import suppress

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
OUTSIDE = "192.0.2.1"  # RFC 5737: belongs to nobody; the route to it is the default route
SIOCGIFADDR = 0x8915  # linux/sockios.h


def own_address(master: str, port: int, several_nodes: bool) -> str:
    """Returns what others reach this machine by.

    Args:
        master: address or name by which all ranks have reached the node of torchrun's store.
        port: of that store.
        several_nodes: there are ranks on other machines.
    """
    address = route_to(master, port)
    # A loopback address means that the master is this machine, which the others know by that name.
    return master if several_nodes and is_loopback(address) else address


def route_to(host: str, port: int = 9) -> str:
    """Returns the address from which this machine reaches another one; nothing is sent.

    Raises:
        OSError: the name is unknown, or there is no route.
    """
    family, kind, protocol, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as route:
        route.connect(target)
        return route.getsockname()[0]


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.split("%")[0]).is_loopback


def give_gloo_an_interface(master: str) -> None:
    """Names the interface for gloo where its own choice, the address of the host's name, leads nowhere from outside.

    Nothing is changed where the user has named one, or where it cannot be told which one it is.

    Args:
        master: address or name of another node, or of this one.
    """
    alone = master == "localhost" or master.startswith(("127.", "::1"))  # all ranks are on this machine
    if alone or GLOO_INTERFACE in os.environ or not _name_leads_back():
        return
    interface = _interface_to_others(master)
    if interface:
        os.environ[GLOO_INTERFACE] = interface


def _name_leads_back() -> bool:
    """Returns whether this host's name is unknown to itself or stands for a loopback address."""
    try:
        return is_loopback(route_to(socket.gethostname()))
    except OSError:
        return True


def _interface_to_others(master: str) -> str | None:
    """Returns the interface of the route to the master, else of the default route, else the only one there is."""
    interfaces = {name: address for name, address in addresses_of_interfaces().items() if not is_loopback(address)}
    for host in (master, OUTSIDE):
        with suppress(OSError):
            address = route_to(host)
            for name, other in interfaces.items():
                if other == address:
                    return name
    return next(iter(interfaces)) if len(interfaces) == 1 else None


def addresses_of_interfaces() -> dict[str, str]:
    """Returns {interface: IPv4 address} of this machine; empty where this is not known how to ask for."""
    import fcntl  # not on Windows, where no ranks are started

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found
