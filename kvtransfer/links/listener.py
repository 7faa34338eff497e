"""`Listener`: accepts the links of other nodes, and gives each a thread."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from protocol.errors import UserError

log = logging.getLogger(__name__)

ACCEPT_RETRY_S = 0.1
"""The pause after a failed `accept`."""
MAX_CONNECTIONS = 1024
"""Connections that are served at once; more are closed as they come."""


class DataPortInUse(UserError):
    """The data port cannot be listened on; the message names another flag value to try."""


class Listener:
    """Accepts connections until `close`, each on a thread of its own: a peer that sends nothing,
    or dies within a message, keeps nobody else waiting."""

    def __init__(self, host: str, port: int, serve: Callable[[socket.socket], None]) -> None:
        """Starts to listen; port 0 takes a free one. Raises DataPortInUse.

        `serve` is called with each connection, which is closed when it returns or raises.
        """
        self._serve = serve
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise DataPortInUse(
                f"cannot listen for KV pages on {host}:{port} ({error.strerror}); "
                "choose another port with --data-port"
            ) from error
        self._socket.listen(64)
        self.port = int(self._socket.getsockname()[1])
        self._connections: set[socket.socket] = set()
        self._threads: set[threading.Thread] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._acceptor = threading.Thread(target=self._accept, name="kv-accept", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        """Stops listening, ends every connection and waits for their threads. May be repeated."""
        self._closing.set()
        if self._socket.fileno() >= 0:
            # `close` alone would not wake the thread that waits in `accept`.
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
        self._acceptor.join()
        with self._lock:
            threads = list(self._threads)
            for connection in self._connections:
                _shut(connection)
        for thread in threads:
            thread.join()

    def _accept(self) -> None:
        """Accepts connections until `close`; starts a thread for each, or closes it if there are
        too many connections or threads."""
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                log.error("a connection to the data port failed: %s", error)
                # Mostly the process has no file descriptor left; without a pause this would spin.
                self._closing.wait(ACCEPT_RETRY_S)
                continue
            thread = threading.Thread(
                target=self._run, args=(connection,), name="kv-from", daemon=True
            )
            with self._lock:
                self._threads = {t for t in self._threads if t.is_alive()}
                if len(self._connections) >= MAX_CONNECTIONS:
                    connection.close()
                    continue
                try:
                    thread.start()
                except RuntimeError as error:  # no more threads
                    log.error("a connection to the data port failed: %s", error)
                    connection.close()
                    continue
                self._connections.add(connection)
                self._threads.add(thread)

    def _run(self, connection: socket.socket) -> None:
        """Serves one connection, whatever it raises, and closes it."""
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve(connection)
        except Exception:
            log.exception("a link failed")
        finally:
            with self._lock:
                self._connections.discard(connection)
            connection.close()


def _shut(connection: socket.socket) -> None:
    """Ends both directions, which wakes the thread that reads from the connection."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed by the peer already
