"""Which addresses a recipe's URL may lead to: not those where a cloud keeps its secrets.

A URL in a recipe is somebody's configuration, perhaps a template's. What answers on
link-local addresses and the clouds' metadata addresses gives credentials to whoever
asks from this host, and is never a model server. Names are judged by what they
resolve to, at every connection, so a name that changes its mind does not help.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Any
from urllib.parse import urlsplit

_FORBIDDEN = tuple(
    ipaddress.ip_network(network)
    for network in (
        "169.254.0.0/16",  # link-local: AWS, Azure, Google, DigitalOcean, Oracle
        "fe80::/10",  # link-local
        "fd00:ec2::/32",  # AWS
        "fd20:ce::254/128",  # Google
        "fd00:c1::a9fe:a9fe/128",  # Oracle
        "100.100.100.200/32",  # Alibaba
        "192.0.0.192/32",  # Oracle
        "168.63.129.16/32",  # Azure's agent
    )
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_DEFAULT_PATH = "/v1"


def is_forbidden(address: str) -> bool:
    """Whether nothing that serves models can be at an IP address.

    Args:
        address: As ``getaddrinfo`` writes it, perhaps with a zone.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    return any(one in network for one in (ip, *_within(ip)) for network in _FORBIDDEN)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    return ipaddress.ip_address(address.partition("%")[0]).is_global


def _within(
    ip: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> list[ipaddress.IPv4Address]:
    """IPv4 addresses that an IPv6 address is another way to write."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    found = [ip.ipv4_mapped, ip.sixtofour]
    if ip in _NAT64:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF))
    return [one for one in found if one is not None]


def checked_url(url: str) -> str:
    """A server's address as a recipe may give it; without a path, ``/v1`` is meant.

    Raises:
        ValueError: It is none, holds a password, or leads where no model server is.
    """
    if any(not "!" <= char <= "~" for char in url):
        raise ValueError("an address has no spaces and only ASCII characters")
    parts = urlsplit(url)
    try:
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"not an address: {error}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("not an address: it must begin with http:// or https:// and a host")
    if "@" in parts.netloc:
        raise ValueError("user and password have no place in a recipe: use api_key_env")
    if parts.query or parts.fragment:
        raise ValueError("an API's address ends with its path: no ? and no #")
    if _is_forbidden_name(host):
        raise ValueError(f"{host} is a link-local or metadata address, where no model server is")
    path = parts.path.rstrip("/") or _DEFAULT_PATH
    return parts._replace(path=path).geturl()


def _is_forbidden_name(host: str) -> bool:
    try:
        return is_forbidden(host)
    except ValueError:
        return False  # a name; what it stands for is seen when it is connected to


def guarded_socket(address: Any) -> socket.socket:
    """A socket for one of ``getaddrinfo``'s answers.

    Raises:
        PermissionError: Nothing is sent to such an address.
    """
    family, kind, protocol, _, place = address
    if is_forbidden(place[0]):
        raise PermissionError(errno.EACCES, f"{place[0]} is a link-local or metadata address")
    return socket.socket(family, kind, protocol)
