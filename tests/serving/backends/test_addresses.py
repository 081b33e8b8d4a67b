import socket

import pytest

from penstock.serving.backends.addresses import checked_url, guarded_socket, is_forbidden


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd20:ce::254",
        "100.100.100.200",
        "168.63.129.16",
    ],
)
def test_addresses_where_clouds_keep_secrets_are_forbidden(address):
    assert is_forbidden(address)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.7", "::1", "fd12::1", "8.8.8.8"])
def test_addresses_where_models_are_served_are_not(address):
    assert not is_forbidden(address)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://api.example.com/openai/v1/", "https://api.example.com/openai/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_without_a_path_means_the_first_version(given, kept):
    assert checked_url(given) == kept


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://host/v1", "http"),
        ("file:///etc/passwd", "http"),
        ("host:8000/v1", "http"),
        ("http://", "http"),
        ("http://user:secret@host/v1", "api_key_env"),
        ("http://host/v1?key=secret", "ends with its path"),
        ("http://host/v1#x", "ends with its path"),
        ("http://ho st/v1", "spaces"),
        ("http://host\r\nx: y/v1", "spaces"),
        ("http://höst/v1", "ASCII"),
        ("http://host:99999/v1", "not an address"),
        ("http://169.254.169.254/latest", "metadata"),
        ("http://[fd00:ec2::254]/v1", "metadata"),
        ("http://[::ffff:169.254.169.254]/v1", "metadata"),
    ],
)
def test_what_is_no_servers_address_is_refused_and_no_secret_repeated(url, why):
    with pytest.raises(ValueError, match=why) as caught:
        checked_url(url)
    assert "secret" not in str(caught.value)


def test_what_a_name_stands_for_is_judged_when_it_is_connected_to():
    """0xA9FEA9FE is how a resolver may be asked for 169.254.169.254 past a look at the text."""
    checked_url("http://0xA9FEA9FE/v1")
    (address,) = socket.getaddrinfo("0xA9FEA9FE", 80, type=socket.SOCK_STREAM)[:1]
    with pytest.raises(PermissionError, match=r"169\.254\.169\.254"):
        guarded_socket(address)
    (address,) = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)[:1]
    guarded_socket(address).close()
