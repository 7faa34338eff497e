"""Starts one coordinator process."""

from __future__ import annotations

import dataclasses
import gc
import logging
import socket
from pathlib import Path
from types import FrameType

import uvicorn

from coordinator.answers.tokenizer import Tokenizer
from coordinator.config import CoordinatorConfig
from coordinator.http.app import create_app
from coordinator.http.wire.half_closing import HalfClosingProtocol
from coordinator.key_file import with_file_keys
from coordinator.service import Service
from protocol.channel import Channel
from protocol.config import ConfigError, describe
from protocol.hosts import advertised_host
from protocol.model.files import open_model
from protocol.trust.secrets import ClusterSecrets

log = logging.getLogger(__name__)

GC_THRESHOLDS = (20_000, 20, 100)
"""A request makes hundreds of objects and hardly a cycle: looking for cycles at every 700th
object took 7 % of the time."""


def run(config: CoordinatorConfig, worker: int = 0) -> None:
    """Serves HTTP until SIGTERM or SIGINT, as the worker of this number if there are several.
    Raises ConfigError or ModelDirectoryError."""
    model_path = Path(config.model_path)
    tokenizer = Tokenizer(model_path, config.chat_template)
    if not config.served_model_name:
        config = dataclasses.replace(config, served_model_name=open_model(model_path).name)
    config = with_file_keys(config)
    listener = listen(config.host, config.port, is_shared=config.workers > 1)
    host = advertised_host(config.host, config.advertise_host, config.redis_url)
    secrets = ClusterSecrets.of(config.cluster_secret, config.cluster_secret_file)
    channel = Channel(config.host, config.control_port, host, secrets)
    log.info("coordinator settings: %s", describe(config))
    if warning := config.insecure_warning(config.host):
        log.warning(warning)
    service = Service(config, tokenizer, channel, worker)
    server = HttpServer(service)
    log.info("listening on http://%s:%d", config.host, config.port)
    gc.freeze()  # what is here now stays: no collection needs to look at it
    gc.set_threshold(*GC_THRESHOLDS)
    server.run(sockets=[listener])


CLOSE = (b"connection", b"close")
FLUSH_TIMEOUT_S = 5
"""How long clients may take to read the ends of their answers when the server ends."""
FIRST_LOOK_S = 1.0
"""How long a new coordinator looks for nodes before it takes up its first connection. One that is
restarted faster than a proxy looks would else refuse what comes meanwhile."""
BACKLOG = 2048
"""Connections that may wait to be accepted."""


def protocol_of(service: Service) -> type[HalfClosingProtocol]:
    """Returns the protocol of the service's connections."""

    class ServiceProtocol(HalfClosingProtocol):
        """Gives clients that do not read up when the service's settings say so, and counts."""

        stall_client_s = service.config.stall_client_s

        def client_stalled(self) -> None:
            """Notes that a client was given up."""
            super().client_stalled()
            service.core.statistics.client_stalled(service.now())

    return ServiceProtocol


class HttpServer(uvicorn.Server):
    """Serves a service over HTTP.

    After the signal to stop it serves on, new connections too, until the service may close. What
    has not ended by then ends with an error. A second signal ends the waiting.
    """

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            create_app(service, FIRST_LOOK_S),
            http=protocol_of(service),
            log_level="warning",
            access_log=False,
            ws="none",
            proxy_headers=False,  # nothing here asks where a request came from
            timeout_keep_alive=service.config.keep_alive_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=FLUSH_TIMEOUT_S,
        )
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT."""
        if self._service.farewell.has_begun:
            return super().handle_exit(sig, frame)
        self._captured_signals.append(sig)  # the process ends by it
        self._service.stop_soon()
        # Clients that keep connections open come back to a coordinator that goes on.
        self.config.encoded_headers.append(CLOSE)
        self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]

    async def on_tick(self, counter: int) -> bool:
        """Returns True when the server is to end; it is called ten times a second."""
        return await super().on_tick(counter) or self._service.may_close

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends what still runs, and closes all connections when they have been told."""
        for server in self.servers:
            server.close()  # first: nobody may come who would be refused
        self._service.end_unfinished()
        await super().shutdown(sockets)


def listen(host: str, port: int, is_shared: bool = False) -> socket.socket:
    """Returns a bound socket; `is_shared` if other processes have one at the same port, among which
    the system divides the connections. Raises ConfigError if the port cannot be used."""
    # With the protocol named, asyncio turns Nagle's algorithm off; else a reply waits 40 ms for
    # the client's acknowledgement of its head.
    listener = socket.socket(proto=socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        if not is_shared:
            # At once: until it listens, another process could bind the same port.
            listener.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"port {port} on {host} cannot be used ({error.strerror}); choose another with --port"
        ) from error
    return listener
