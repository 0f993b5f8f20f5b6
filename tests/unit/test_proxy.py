"""The tests' own proxy: what it leaves behind would fail some later test."""

import gc
import socket
import warnings

from tests.support.proxy import Proxy


def test_a_proxy_that_ends_leaves_no_socket_open() -> None:
    """Also of connections that come in just then: accepted, and seen by no task of its own."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(5):
            clients = []
            with Proxy("unix:///nowhere") as proxy:
                for _ in range(50):
                    clients.append(socket.socket(socket.AF_UNIX))
                    clients[-1].connect(str(proxy.path))
            for client in clients:
                client.close()
        gc.collect()
    assert told == []
