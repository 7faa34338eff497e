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
        config = dataclasses.replace(config, served_model_name=model_path.resolve().name)
    config = with_file_keys(config)
    listener = listen(config.host, config.port, is_shared=config.workers > 1)
    host = advertised_host(config.host, config.advertise_host, config.redis_url)
    channel = Channel(config.host, config.control_port, host)
    log.info("coordinator settings: %s", describe(config))
    service = Service(config, tokenizer, channel, worker)
    server = HttpServer(service)
    log.info("listening on http://%s:%d", config.host, config.port)
    gc.freeze()  # what is here now stays: no collection needs to look at it
    gc.set_threshold(*GC_THRESHOLDS)
    server.run(sockets=[listener])


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


BACKLOG = 2048
"""Connections that may wait to be accepted."""


class HttpServer(uvicorn.Server):
    """Serves a service over HTTP. It tells the service of the signal to stop, before it waits for
    what runs."""

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            create_app(service),
            http=protocol_of(service),
            log_level="warning",
            access_log=False,
            ws="none",
            proxy_headers=False,  # nothing here asks where a request came from
            timeout_keep_alive=service.config.keep_alive_s,  # type: ignore[arg-type]
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handles SIGTERM and SIGINT."""
        self._service.stop_soon()
        super().handle_exit(sig, frame)


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
