"""A network of its own for nodes of a cluster, in which one can be cut off from the others.

Each node has a network namespace (network_namespaces(7)) with two links: one to this machine, for
clients, and one to a bridge that has the nodes' links alone, for what they say to each other. To
cut a node off, its link is taken from that bridge: no packet passes any more, in either direction,
and neither side is told, as when a switch fails. Clients reach every node all the time. Needs root.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import tempfile
from pathlib import Path

from services.infra import Place

NETWORK = "198.18"
"""For tests of networks (RFC 2544): it is routed nowhere."""


class MissingNetworkError(Exception):
    """This machine cannot have such a network."""


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Network:
    """:raises MissingNetworkError: this is not root, or the kernel has no such links."""

    def __init__(self, size: int) -> None:
        self._name = f"osx{secrets.token_hex(3)}"
        self._made: list[tuple[str, ...]] = []
        self._names = Path(tempfile.mkdtemp(prefix="osloxide-network-")) / "inetrc"
        numbers = range(1, size + 1)
        lines = [
            f'{{host, {{{self._inner(number).replace(".", ",")}}}, ["node{number}"]}}.'
            for number in numbers
        ]
        self._names.write_text("\n".join([*lines, "{lookup, [file, native]}.", ""]))
        try:
            for side in "io":
                self._make("link", f"{self._name}{side}", "type", "bridge")
                _ip("link", "set", f"{self._name}{side}", "up")
            _ip("address", "add", f"{self._outer(254)}/24", "dev", f"{self._name}o")
            for number in numbers:
                self._make("netns", f"{self._name}{number}")
                self._link(number, "i", self._inner(number))
                self._link(number, "o", self._outer(number))
                _ip("-n", f"{self._name}{number}", "link", "set", "lo", "up")
        except (OSError, subprocess.CalledProcessError) as error:
            self.remove()
            said = getattr(error, "stderr", None) or error
            raise MissingNetworkError(f"no network of namespaces: {said}") from error
        self.places = [
            Place(
                self._outer(number), self._inner(number), f"node{number}",
                ("nsenter", f"--net=/run/netns/{self._name}{number}"),
                {"ERL_INETRC": str(self._names)},
            )
            for number in numbers
        ]  # fmt: skip

    def cut(self, number: int) -> None:
        """Let no packet pass between the node of that *number*, from 0 on, and the others."""
        _ip("link", "set", f"{self._name}i{number + 1}", "nomaster")

    def join(self, number: int) -> None:
        """End what :meth:`cut` has begun."""
        _ip("link", "set", f"{self._name}i{number + 1}", "master", f"{self._name}i")

    def remove(self) -> None:
        """End all of it; the programs in it have ended."""
        for kind, name in reversed(self._made):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip(kind, "delete", name)
        self._names.unlink()
        self._names.parent.rmdir()

    def _make(self, kind: str, name: str, *words: str) -> None:
        _ip(kind, "add", name, *words)
        self._made.append((kind, name))

    def _link(self, number: int, side: str, address: str) -> None:
        space = f"{self._name}{number}"
        link, bridge = f"{self._name}{side}{number}", f"{self._name}{side}"
        self._make("link", link, "type", "veth", "peer", "name", f"{side}0", "netns", space)
        _ip("link", "set", link, "up", "master", bridge)
        _ip("-n", space, "address", "add", f"{address}/24", "dev", f"{side}0")
        _ip("-n", space, "link", "set", f"{side}0", "up")

    def _inner(self, number: int) -> str:
        return f"{NETWORK}.1.{number}"

    def _outer(self, number: int) -> str:
        return f"{NETWORK}.0.{number}"
