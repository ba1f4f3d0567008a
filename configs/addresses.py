"""Where an address leads: to the public network, a private one, or where nothing of ours belongs.

`endpoint.private` of a judge allows the second; nothing allows the third, cloud metadata above all.
"""

import ipaddress
from enum import StrEnum
from urllib.parse import urlsplit

_SHARED = ipaddress.ip_network("100.64.0.0/10")
_METADATA = frozenset(
    map(ipaddress.ip_address, ("fd00:ec2::254", "100.100.100.200", "168.63.129.16"))
)
_LOCAL_NAMES = ("localhost", ".localhost", ".local", ".internal", ".lan", ".home.arpa")


class Reach(StrEnum):
    """Where an address leads."""

    PUBLIC = "public"
    PRIVATE = "private"
    """This machine, or a network that the internet does not reach."""
    FORBIDDEN = "forbidden"
    """Metadata services, link-local, multicast, nothing."""


def reach_of(address: str) -> Reach:
    """Return where an IP address leads; ValueError if it is none."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        ip = ip.ipv4_mapped
    if ip in _METADATA or ip.is_link_local or ip.is_multicast or ip.is_unspecified:
        return Reach.FORBIDDEN
    if ip.is_loopback or ip.is_private or (ip.version == 4 and ip in _SHARED):
        return Reach.PRIVATE
    return Reach.FORBIDDEN if ip.is_reserved else Reach.PUBLIC


def reach_of_url(url: str) -> Reach | None:
    """Return where a URL leads, as far as its own text tells; None for a name to be resolved."""
    host = (urlsplit(url).hostname or "").rstrip(".").lower()
    try:
        return reach_of(host)
    except ValueError:
        pass
    if host == "metadata.google.internal":
        return Reach.FORBIDDEN
    local = "." not in host or any(host == n or host.endswith(n) for n in _LOCAL_NAMES)
    return Reach.PRIVATE if local else None
