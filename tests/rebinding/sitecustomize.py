"""A name server of a stranger: `rebinding.example` is a public address when it is first asked for, and this machine ever after.

Python imports this by its name at start-up when its folder is on PYTHONPATH, in spawned workers too. Nothing leaves this machine: a
connection to the public address ends at the port of VECLIP_TEST_PUBLIC here.
"""

import os
import socket

NAME, PUBLIC = "rebinding.example", "93.184.215.14"

_resolve, _connect = socket.getaddrinfo, socket.socket.connect
_answers = iter([PUBLIC])


def _rebinding_resolve(host, *arguments, **named):
    return _resolve(next(_answers, "127.0.0.1") if host == NAME else host, *arguments, **named)


def _connect_here(self, address):
    return _connect(self, ("127.0.0.1", int(os.environ["VECLIP_TEST_PUBLIC"])) if address[0] == PUBLIC else address)


socket.getaddrinfo, socket.socket.connect = _rebinding_resolve, _connect_here
