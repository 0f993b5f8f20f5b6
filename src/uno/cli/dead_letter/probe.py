"""Asking the port of a worker, or of the service, how it is: what ``health --url`` and exec probes of containers do."""

import json
import os
import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit

from uno.cli.failures import Failure, Status

__all__ = ["probe"]

PATIENCE_S: Final = 5.0
LONGEST_ANSWER: Final = 65_536


def probe(url: str, path: str) -> dict[str, Any]:
    """Return what the worker or service at this URL answers to ``/livez`` or ``/readyz``; its ``ok`` is the verdict.

    Goes straight there, whatever proxies the environment names. Raises `Failure`: status 2 for what is no URL, 5 when
    nobody answers, 1 when somebody else does.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
        raise Failure("--url is no URL of a worker or service: wanted is http://host:port", Status.USAGE)
    where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
    connection = _connection(parts.scheme, parts.hostname, port)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        answer = connection.getresponse()
        status, body = answer.status, answer.read(LONGEST_ANSWER)
    except (OSError, HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Failure(f"nobody answers at {where}: {why}", Status.UNREACHABLE) from error
    finally:
        connection.close()
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if status not in (200, 503) or not isinstance(told, dict) or told.get("ok") is not (status == 200):
        raise Failure(
            f"what answers at {where}{path} is neither a worker nor a service (HTTP {status})", Status.FAILURE
        )
    return told


def _connection(scheme: str, host: str, port: int | None) -> HTTPConnection:
    if scheme != "https":
        return HTTPConnection(host, port, timeout=PATIENCE_S)
    authorities = os.environ.get("DLQ_SERVICE_CA_FILE", "").strip() or None
    try:
        context = ssl.create_default_context(cafile=authorities)
    except (OSError, ssl.SSLError) as error:
        raise Failure(f"DLQ_SERVICE_CA_FILE {authorities!r} cannot be used: {error.strerror}", Status.USAGE) from error
    return HTTPSConnection(host, port, timeout=PATIENCE_S, context=context)
