"""`make cluster`: a Redis Cluster on loopback, three primaries and three replicas, until Ctrl-C or SIGTERM."""
# ruff: noqa: T201 - a script talks to people

import signal
import time
from typing import NoReturn

from uno.event_bus.dead_letter.store.local_cluster import LocalCluster

BACK_SECONDS = 10
"""A killed node is started again within this time, mostly long after its replica has taken over."""


def main() -> None:
    """Start the cluster, say how to use it, and stop it when told."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        with LocalCluster(appendonly=True) as cluster:
            for primary in cluster.primaries():
                replicas = ", ".join(f"{node.port} (pid {node.pid})" for node in cluster.replicas_of(primary))
                print(f"primary {primary.port} (pid {primary.pid})   replica {replicas}")
            print(f"\n{cluster.url}\n")
            print(f"    REDIS_URL='{cluster.url}' .venv/bin/uno dead-letter worker --app MODULE:QUEUE")
            print(
                f"    kill -9 PID: a replica takes over from a primary, and the node is back within {BACK_SECONDS} s\n"
            )
            print("Ctrl-C stops it; nothing is kept.", flush=True)
            while True:
                time.sleep(BACK_SECONDS)
                for node in cluster.nodes:
                    node.start()
    except KeyboardInterrupt:
        print("stopped", flush=True)


def leave(*_: object) -> NoReturn:
    """End `main` in order, whichever signal it was; another one changes nothing any more."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
