import os
import socket

import pytest

from nlvideo.runtime import addresses
from nlvideo.runtime.addresses import GLOO_INTERFACE, give_gloo_an_interface, is_loopback, own_address

INTERFACES = {"lo": "127.0.0.1", "ib0": "10.1.0.7", "eth0": "10.0.0.7"}


class Routes:
    """This machine's routes, as a socket finds them: {target: own address}."""

    def __init__(self, monkeypatch, routes):
        self.routes = routes
        monkeypatch.setattr(addresses.socket, "getaddrinfo", self.look_up)
        monkeypatch.setattr(addresses.socket, "socket", lambda *_: self)

    def look_up(self, host, port, **_):
        if host not in self.routes:
            raise socket.gaierror("unknown")
        return [(0, 0, 0, "", (host, port))]

    def connect(self, target):
        self.target = target[0]

    def getsockname(self):
        return self.routes[self.target], 1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.fixture
def machine(monkeypatch):
    """Gives this machine, called node-a, its routes."""
    monkeypatch.delenv(GLOO_INTERFACE, raising=False)
    monkeypatch.setattr(addresses.socket, "gethostname", lambda: "node-a")
    monkeypatch.setattr(addresses, "addresses_of_interfaces", lambda: INTERFACES)
    yield lambda **routes: Routes(monkeypatch, {name.replace("_", "-"): value for name, value in routes.items()})
    os.environ.pop(GLOO_INTERFACE, None)


def test_loopback_addresses_are_known():
    assert all(is_loopback(address) for address in ("127.0.0.1", "127.0.1.1", "::1"))
    assert not any(is_loopback(address) for address in ("10.0.0.7", "fe80::1%eth0"))


def test_other_nodes_are_told_no_loopback_address(machine):
    machine(node_a="127.0.0.1", node_b="10.0.0.7")
    assert own_address("node-b", 29400, several_nodes=True) == "10.0.0.7"
    assert own_address("node-a", 29400, several_nodes=True) == "node-a"  # by which they have come here
    assert own_address("node-a", 29400, several_nodes=False) == "127.0.0.1"


@pytest.mark.parametrize(
    ("routes", "interface"),
    [
        ({"node_a": "127.0.0.1", "node_b": "10.1.0.7"}, "ib0"),
        ({"node_b": "10.1.0.7"}, "ib0"),  # a name that the machine itself does not know
        ({"node_a": "127.0.0.1", "node_b": "127.0.0.1", addresses.OUTSIDE: "10.0.0.7"}, "eth0"),
        ({"node_a": "127.0.0.1", "node_b": "127.0.0.1"}, None),  # two are left, and nothing tells which
        ({"node_a": "10.0.0.7", "node_b": "10.1.0.7"}, None),  # gloo finds the way itself
    ],
)
def test_gloo_gets_an_interface_that_leads_to_other_nodes(machine, routes, interface):
    machine(**routes)
    give_gloo_an_interface("node-b")
    assert os.environ.get(GLOO_INTERFACE) == interface


def test_the_only_interface_is_taken_without_a_route(machine, monkeypatch):
    machine(node_a="127.0.0.1")
    monkeypatch.setattr(addresses, "addresses_of_interfaces", lambda: {"lo": "127.0.0.1", "eth0": "10.0.0.7"})
    give_gloo_an_interface("node-a")
    assert os.environ[GLOO_INTERFACE] == "eth0"


def test_the_users_interface_is_kept_and_one_machine_needs_none(machine, monkeypatch):
    machine(node_a="127.0.0.1", node_b="10.1.0.7")
    for master in ("localhost", "127.0.0.1", "::1"):
        give_gloo_an_interface(master)
        assert GLOO_INTERFACE not in os.environ
    monkeypatch.setenv(GLOO_INTERFACE, "eth1")
    give_gloo_an_interface("node-b")
    assert os.environ[GLOO_INTERFACE] == "eth1"


def test_the_interfaces_of_this_machine():
    found = addresses.addresses_of_interfaces()
    assert found["lo"] == "127.0.0.1"
    assert found.keys() <= {name for _, name in socket.if_nameindex()}
