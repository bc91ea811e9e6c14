"""Who is let in: whoever has the token, comes to this host by its name, and was sent by no other page."""

import http.client
import socket
from urllib.parse import urlsplit

import pytest
from viewing_helpers import make_plain


@pytest.fixture(scope="module")
def address(tmp_path_factory, served):
    folder = tmp_path_factory.mktemp("safety") / "plain"
    make_plain(folder).close()
    return urlsplit(served.address(folder))


def status(address, path, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
    connection.putrequest("GET", path, skip_host=any(name == "Host" for name, _ in headers))
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status


def test_who_has_the_token_is_let_in(address):
    assert status(address, address.path) == 200
    assert status(address, address.path, [("Host", f"localhost:{address.port}")]) == 200
    assert status(address, address.path, [("Origin", f"http://127.0.0.1:{address.port}")]) == 200


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/wrong/{name}", "/{token}x/{name}", "/_nicegui/x", "//{token}"])
def test_a_wrong_token_is_refused(address, path):
    _, token, name = address.path.split("/")
    assert status(address, path.format(token=token, name=name)) == 403


def test_a_view_that_there_is_not(address):
    assert status(address, address.path[:-1] + ("0" if address.path[-1] != "0" else "1")) == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1.evil.example:{port}"])
def test_another_host_is_refused(address, host):
    assert status(address, address.path, [("Host", host.format(port=address.port))]) == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1:{port}", "http://127.0.0.1"])
def test_another_origin_is_refused(address, origin):
    assert status(address, address.path, [("Origin", origin.format(port=address.port))]) == 403


@pytest.mark.parametrize("header", ["Host: evil.example", "Origin: http://evil.example"])
def test_a_socket_is_refused_as_well(address, header):
    prefix = address.path.rpartition("/")[0]
    host = "" if header.startswith("Host") else f"Host: 127.0.0.1:{address.port}\r\n"
    with socket.create_connection(("127.0.0.1", address.port), timeout=10) as connection:
        connection.sendall(
            f"GET {prefix}/_nicegui_ws/socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n{host}{header}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert b" 403 " in connection.recv(4096).split(b"\r\n")[0]


def test_it_listens_to_this_machine_only(address):
    """A socket that is bound to all addresses would also be reached by the second one of this machine."""
    with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
        socket.create_connection(("127.0.0.2", address.port), timeout=2)


def test_answers_keep_the_address_to_themselves(address):
    connection = http.client.HTTPConnection("127.0.0.1", address.port, timeout=10)
    connection.request("GET", address.path)
    answer = connection.getresponse()
    assert answer.getheader("referrer-policy") == "no-referrer"
    assert "default-src 'self'" in answer.getheader("content-security-policy")
    connection.close()


@pytest.mark.parametrize(
    "place", ["0/{uuid}/99/0/0", "7/{uuid}/0/0/0", "0/00000000/0/0/0", "0/{uuid}/0/0/-1", "0/x/0/9/0"]
)
def test_frames_that_there_are_not(address, place):
    head, _, name = address.path.rpartition("/")
    assert status(address, f"{head}/frame/{name}/{place.format(uuid='')}") in (404, 422)
