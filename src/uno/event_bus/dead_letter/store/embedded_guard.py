"""The guard of an embedded server: one small process that owns the server while somebody uses it.

`embedded.py` runs this file as a script, in a session of its own (Ctrl-C in a user's terminal reaches neither
guard nor server). It is one file with the standard library only, so that it starts fast and stays small::

    python -I -S embedded_guard.py DIRECTORY SERVER FLAGS…      stdin: the first user's connection

**Who uses the server** is whoever holds a connection to ``guard.sock`` open. The kernel closes it on every kind
of death, so no heartbeat is needed: when the last one is gone, the guard sends SIGTERM to the server and waits.

**Who owns the directory** is whoever holds ``server.lock`` (flock). The server inherits the descriptor, so the
lock is free only when guard *and* server are gone: two servers never write one AOF, and under the lock every
socket file that is found is stale and may be removed.

===============  =============================================================================================
what dies        what happens
===============  =============================================================================================
a user           the others go on; after the last one the server ends cleanly (AOF written and fsynced)
the server       the guard starts it again, at most once a second; if it does not come up, the guard leaves
the guard        the server gets SIGTERM from the kernel (Linux) or from a waiting shell (elsewhere); a user's
                 next `start()` waits for its end and starts both anew
all at once      only files stay; every write that has reached the kernel is in the AOF
===============  =============================================================================================

SIGTERM, SIGINT and SIGHUP are ignored by the guard: a service manager signals a whole group at once, and a
worker that is still settling needs its store until it leaves by itself.

Words on the wire end in NUL: the guard says ``ready <path of server.sock>`` or ``failed <why>`` to a new user and
``in use`` to a leaving one whose server stays; a user says ``bye`` to learn by end-of-file that all is over.
"""

import contextlib
import ctypes
import fcntl
import os
import selectors
import signal
import socket
import sys
import time

GUARD_SOCKET = "guard.sock"
SERVER_SOCKET = "server.sock"
SOCKET_RECORD = "sockets"  # names the directory of the two sockets, when it is not the data directory
SERVER_LOG = "server.log"

SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103  # sun_path without its NUL
LOCK_SECONDS = 40.0  # longer than a predecessor needs to end its server
SILENCE_SECONDS = 30.0  # a starting server that answers nothing at all, not even LOADING
STOP_SECONDS = 30.0  # from SIGTERM to SIGKILL: an AOF flush on a slow disk
RESTART_SECONDS = 1.0  # the least time between two starts of a server that dies by itself
CAN_FOLLOW_PARENT = sys.platform == "linux"
PR_SET_PDEATHSIG = 1


class StartError(Exception):
    """Raised when the server cannot be had; the message is for the user, in one line."""


def fits(directory: str) -> bool:
    """Say whether the sockets of this directory have paths that the kernel takes."""
    return len(os.fsencode(os.path.join(directory, SERVER_SOCKET))) <= SOCKET_PATH_BYTES


def log_tail(directory: str, start: int = 0) -> str:
    """Give the last four lines of the server's log after byte ``start``, in one line."""
    with contextlib.suppress(OSError), open(os.path.join(directory, SERVER_LOG), "rb") as log:
        log.seek(max(start, log.seek(0, os.SEEK_END) - 4096))
        lines = log.read().decode(errors="replace").splitlines()
        return " | ".join([line.strip() for line in lines if line.strip()][-4:])
    return ""


class Guard:
    """One server of one directory, from the lock to its end."""

    def __init__(self, directory: str, command: list[str], starter: socket.socket) -> None:
        self._directory = directory
        self._sockets = directory
        self._command = command
        self._lock = os.open(os.path.join(directory, "server.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        self._owns_directory = False
        self._server: int | None = None  # pid, while it lives
        self._exit_code = 0  # of the last one that ended; below 0 the number of the signal
        self._started = 0.0  # monotonic
        self._tether = -1
        self._listener: socket.socket | None = None
        self._users = {starter}
        self._leaving: list[socket.socket] = []
        self._child_ended, wakeup = socket.socketpair()
        self._wakeup = wakeup  # kept open: the signal handler writes to it
        self._selector = selectors.DefaultSelector()
        for side in (self._child_ended, wakeup, starter):
            side.setblocking(False)
        self._selector.register(self._child_ended, selectors.EVENT_READ)
        self._selector.register(starter, selectors.EVENT_READ)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno())

    def run(self) -> None:
        """Serve until the last user is gone, or the server cannot be had."""
        try:
            self._take_lock()
            self._make_way()
            self._start_server()
            self._listen()
            while self._users:
                self._wait(None)
                self._answer_leaving()
                if self._users and self._server_ended():
                    self._restart()
        except (StartError, OSError) as error:
            os.write(2, f"guard: {error}\n".encode())
            for user in self._users:
                self._say(user, f"failed {error}")
        finally:
            self._finish()

    # ---------------------------------------------------------------------------------------- the directory

    def _take_lock(self) -> None:
        """Own the directory; a predecessor may still be ending its server."""
        deadline = time.monotonic() + LOCK_SECONDS
        while not self._owns_directory:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._owns_directory = True
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StartError(f"another server holds {self._directory}") from None
                self._wait(0.005)
                self._need_users()

    def _make_way(self) -> None:
        """Remove what a killed predecessor left, and choose where the sockets live."""
        record = os.path.join(self._directory, SOCKET_RECORD)
        with contextlib.suppress(OSError), open(record, "rb") as file:
            self._remove_sockets(os.fsdecode(file.read()))
        if fits(self._directory):
            with contextlib.suppress(OSError):
                os.unlink(record)
        else:
            self._sockets = private_directory()
            with open(f"{record}.new", "wb") as file:
                file.write(os.fsencode(self._sockets))
            os.replace(f"{record}.new", record)
        self._remove_sockets(self._directory)

    def _remove_sockets(self, directory: str) -> None:
        for name in (GUARD_SOCKET, SERVER_SOCKET):
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(directory, name))
        if directory != self._directory:
            with contextlib.suppress(OSError):
                os.rmdir(directory)

    # ------------------------------------------------------------------------------------------- the server

    def _start_server(self) -> None:
        """Start the server and return when it has its data in memory; LOADING may take what it takes."""
        log = os.path.join(self._directory, SERVER_LOG)
        log_start = os.path.getsize(log) if os.path.exists(log) else 0
        self._started = time.monotonic()
        guard = os.getpid()
        self._server = os.fork()
        if self._server == 0:
            self._become_server(guard)
        if not CAN_FOLLOW_PARENT:
            self._tether = tether(self._server)
        pause, deadline = 0.001, time.monotonic() + SILENCE_SECONDS
        while (answer := self._ask(b"PING\r\n")) is None or answer.startswith(b"-LOADING"):
            if self._server_ended():
                ended = f"{self._command[0]} did not start (exit code {self._exit_code})"
                raise StartError(f"{ended}: {log_tail(self._directory, log_start)}")
            deadline = deadline if answer is None else time.monotonic() + SILENCE_SECONDS
            if time.monotonic() > deadline:
                raise StartError(f"{self._command[0]} has not answered for {SILENCE_SECONDS:.0f} s")
            self._wait(pause)
            self._need_users()
            pause = min(pause * 1.2, 0.05)

    def _become_server(self, guard: int) -> None:
        """Turn the forked child into the server; never returns."""
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            os.set_inheritable(self._lock, True)
            if CAN_FOLLOW_PARENT:
                # SIGTERM, not SIGKILL: the server then writes and fsyncs its AOF before it goes.
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() == guard:  # otherwise the guard died before the line above
                os.execv(self._command[0], [*self._command, "--unixsocket", self._server_socket])
        except OSError as error:
            os.write(2, f"{self._command[0]}: {error}\n".encode())
        finally:
            os._exit(127)

    def _ask(self, command: bytes) -> bytes | None:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(self._server_socket)
            connection.sendall(command)
            return connection.recv(64) or None
        return None

    def _server_ended(self) -> bool:
        if self._server is not None:
            pid, status = os.waitpid(self._server, os.WNOHANG)
            if pid:
                self._server, self._exit_code = None, os.waitstatus_to_exitcode(status)
                self._untie()
        return self._server is None

    def _untie(self) -> None:
        """Let the waiting shell go: the number of an ended server may soon be another process's."""
        if self._tether != -1:
            with contextlib.suppress(OSError):  # somebody may have killed the shell
                os.write(self._tether, b"\n")
            os.close(self._tether)
            self._tether = -1

    def _restart(self) -> None:
        os.write(2, f"guard: the server ended ({self._exit_code}) while in use; starting it again\n".encode())
        while self._users and (rest := self._started + RESTART_SECONDS - time.monotonic()) > 0:
            self._wait(rest)
        if self._users and self._listener is not None:
            self._selector.unregister(self._listener)  # a new user is welcome when the server is there
            self._start_server()
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _finish(self) -> None:
        """End the server cleanly, then take the sockets away: from here on the directory is at rest."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self._sockets, GUARD_SOCKET))
            self._listener.close()  # who is not accepted yet sees its connection end, and starts a new guard
        self._end_server()
        if self._owns_directory:
            self._remove_sockets(self._sockets)
        os.close(self._lock)  # before the sockets of those who wait for our end, which close with this process

    def _end_server(self) -> None:
        """Send SIGTERM until it is gone: one that comes between fork and exec is lost, as the guard ignores it."""
        deadline = time.monotonic() + STOP_SECONDS
        again = 0.0
        while not self._server_ended() and self._server is not None:
            if (now := time.monotonic()) > again:
                os.kill(self._server, signal.SIGKILL if now > deadline else signal.SIGTERM)
                self._ask(b"SHUTDOWN NOSAVE\r\n")  # signals are looked at ten times a second, this at once
                again = now + 0.1
            time.sleep(0.002)

    # -------------------------------------------------------------------------------------------- the users

    def _listen(self) -> None:
        """Open `guard.sock`, which thereby means: the server is ready."""
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(os.path.join(self._sockets, GUARD_SOCKET))
        self._listener.listen(128)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ)
        for user in self._users:
            self._say(user, f"ready {self._server_socket}")

    def _wait(self, seconds: float | None) -> None:
        """Wait at most so long for anything to happen; note who came, who left, and that a child ended."""
        for key, _ in self._selector.select(seconds):
            side = key.fileobj
            assert isinstance(side, socket.socket)
            if side is self._listener:
                self._welcome(side)
            elif side is self._child_ended:
                side.recv(4096)
            else:
                self._hear(side)

    def _welcome(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            user, _ = listener.accept()
            user.setblocking(False)
            self._users.add(user)
            self._selector.register(user, selectors.EVENT_READ)
            self._say(user, f"ready {self._server_socket}")

    def _hear(self, user: socket.socket) -> None:
        """Take note that a user has died (end of file) or says goodbye."""
        try:
            words = user.recv(64)
        except OSError:
            words = b""
        self._users.discard(user)
        self._selector.unregister(user)
        if words:
            self._leaving.append(user)
        else:
            user.close()

    def _answer_leaving(self) -> None:
        """Tell those who say goodbye that the server stays; if it does not, they wait for our end of file."""
        if self._leaving:
            self._wait(0)  # a leaver has closed its other connection before it spoke: see that first
        if self._users:
            for user in self._leaving:
                self._say(user, "in use")
                user.close()
            self._leaving.clear()

    def _need_users(self) -> None:
        if not self._users:
            raise StartError("nobody waits for the server any more")

    @property
    def _server_socket(self) -> str:
        return os.path.join(self._sockets, SERVER_SOCKET)

    @staticmethod
    def _say(user: socket.socket, words: str) -> None:
        with contextlib.suppress(OSError):
            user.sendall(os.fsencode(words) + b"\0")


def private_directory() -> str:
    """Make a directory (0700) whose path is short enough for sockets."""
    import tempfile  # 10 ms, seldom needed

    if not fits(os.path.join(tempfile.gettempdir(), "uno-dlq-12345678")):
        return tempfile.mkdtemp(prefix="uno-dlq-", dir="/tmp")
    return tempfile.mkdtemp(prefix="uno-dlq-")


def tether(server: int) -> int:
    """Have a shell end the server when this process is gone, where the kernel does not offer that.

    Gives the only end of the pipe it reads: a line lets it go, end of file makes it send SIGTERM.
    """
    read_end, write_end = os.pipe()
    shell = ["sh", "-c", 'trap "" INT TERM HUP; read -r _ || kill -TERM "$1"', "sh", str(server)]
    os.posix_spawn("/bin/sh", shell, dict(os.environ), file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0)])
    os.close(read_end)
    return write_end


def main(directory: str, command: list[str]) -> None:
    """Detach from the starter, and guard."""
    if os.fork():  # the starter waits for this half only, so it never gets a zombie to reap
        os._exit(0)
    os.umask(0o077)
    os.chdir("/")
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # a blocked SIGTERM would pass on to the server
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    starter = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # the server must not hold its user's connection open
    Guard(directory, command, starter).run()
    os._exit(0)  # at once: who waits for the end of our sockets may then start a successor


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
