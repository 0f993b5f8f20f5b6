"""Requests that mean no good, byte by byte, and the status with which a service refuses each."""

from typing import Final

from tests.support.raw_http import head

__all__ = ["HOSTILE", "POST"]

POST: Final = head("POST")[:-2]
HOSTILE: Final[dict[str, tuple[bytes, int]]] = {
    "garbage": (b"GARBAGE\r\n\r\n", 400),
    "TLS on the plain port": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "no version": (b"GET /echo\r\n\r\n", 400),
    "bare line feeds in a header": (b"GET /echo HTTP/1.1\nHost: localhost\n\n", 400),
    "absolute URI": (head(path="http://evil.example/echo"), 400),
    "CONNECT": (head("CONNECT", "localhost:80"), 400),
    "two slashes": (head(path="//evil.example/echo"), 400),
    "asterisk": (head("OPTIONS", "*"), 400),
    "dots": (head(path="/v1/../echo"), 404),
    "dots in disguise": (head(path="/v1/%2e%2E/echo"), 404),
    "dots behind a slash in disguise": (head(path="/v1/..%2fecho"), 404),
    "NUL": (head(path="/echo%00"), 404),
    "line feed in the path": (head(path="/echo%0aX"), 404),
    "half an escape": (head(path="/echo%4"), 400),
    "no escape": (head(path="/echo%zz"), 400),
    "path of no UTF-8": (head(path="/%ff%fe"), 400),
    "query of no UTF-8": (head(path="/echo?x=%ff"), 400),
    "raw bytes in the path": (head(path="/\xff\xfe"), 400),
    "no Host": (b"GET /echo HTTP/1.1\r\n\r\n", 400),
    "two Hosts": (head()[:-2] + b"Host: localhost\r\n\r\n", 400),
    "Upgrade": (head(connection="Upgrade", upgrade="websocket"), 400),
    "two lengths": (POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "length and chunks": (POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunks and length": (POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", 400),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "length with a sign": (POST + b"Content-Length: +3\r\n\r\nabc", 400),
    "lengths in a list": (POST + b"Content-Length: 3, 3\r\n\r\nabc", 400),
    "length beyond 64 bits": (POST + b"Content-Length: 99999999999999999999\r\n\r\n", 400),
    "encoding twice": (POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "unknown encoding": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
    "encoding in disguise": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", 400),
    "chunk size beyond 64 bits": (POST + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
    "chunk size of no digits": (POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    "chunk longer than it said": (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcdef\r\n0\r\n\r\n", 400),
    "folded header": (POST + b"X: a\r\n b\r\nX y: z\r\n\r\n", 400),
    "long path": (head(path="/" + "a" * 33_000), 431),
    "long header": (head(x="a" * 33_000), 431),
    "many headers": (b"GET /echo HTTP/1.1\r\n" + b"X: a\r\n" * 101 + b"\r\n", 431),
    "many small headers": (head(**{f"x{i}": "a" * 1000 for i in range(40)}), 431),
    "line ends for ever": (b"\r\n" * 40_000, 431),
    "long trailer": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"a" * 400_000, 431),
    "many trailers": (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: a\r\n" * 9000, 431),
    "long chunk extension": (POST + b"Transfer-Encoding: chunked\r\n\r\n3;x=" + b"a" * 400_000, 431),
    "length above the bound": (POST + b"Content-Length: 1073741824\r\n\r\n", 413),
    "wrong Host": (head(host="evil.example", connection="close"), 421),
    "wrong Host that looks right": (head(host="localhost.evil.example", connection="close"), 421),
    "Host of no form": (head(host="local host", connection="close"), 421),
    "page of another site": (head("POST", origin="http://evil.example", connection="close"), 403),
    "page of no site": (head("POST", origin="null", connection="close"), 403),
    "page of another port": (head("POST", host="localhost:1", origin="http://localhost:2", connection="close"), 403),
    "form of another site": (head("POST", sec_fetch_site="cross-site", connection="close"), 403),
}
"""What it is → what is sent, and the status; all of them end the connection. Wrong Host: where names are asked for."""
