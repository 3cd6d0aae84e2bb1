"""The engine process: ``python -m jobs.inference.process --config FILE``.

Guarantees: it serves only models whose files were verified, listens only when the default model and
the pinned ones are loaded (others are loaded by the first request that names them; ``catalog_scheduler``
says how the file may change), and on SIGTERM or SIGINT stops accepting, cancels what runs, delivers the
last chunks and frees the models before the interpreter exits (CTranslate2 can abort otherwise). Exit
status: 0 stopped, 2 bad configuration, 3 a model was refused, 4 the socket is in use. Restarting is the
supervisor's.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from jobs.inference.catalog_scheduler import CatalogScheduler
from jobs.inference.configuration import ConfigurationError, EngineConfiguration, read_configuration
from jobs.inference.engine import EngineUnavailable
from jobs.inference.generator import ModelLoadError
from jobs.inference.placement import choose_placement
from jobs.inference.server import EngineServer, SocketInUse, bind_socket
from jobs.inference.sources import ConfiguredModels

logger = logging.getLogger("jobs.inference.process")

EXIT_BAD_CONFIGURATION = 2
EXIT_MODEL_REFUSED = 3
EXIT_SOCKET_IN_USE = 4
DRAIN_SECONDS = 10.0


def main() -> int:
    """Run until a signal; the return value is the exit status."""
    parser = argparse.ArgumentParser(description="Fabstir Host: the inference engine process.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file, see configuration.py")
    arguments = parser.parse_args()
    # A computing thread that has a token must not wait 5 ms (the default) while a prompt is being rendered.
    sys.setswitchinterval(0.001)
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    try:
        configuration = read_configuration(arguments.config)
        with _sole_owner(configuration.socket):
            asyncio.run(_serve(configuration, path=arguments.config))
    except ConfigurationError as error:
        return _refused(error, status=EXIT_BAD_CONFIGURATION)
    except (ModelLoadError, EngineUnavailable) as error:
        return _refused(error, status=EXIT_MODEL_REFUSED)
    except SocketInUse as error:
        return _refused(error, status=EXIT_SOCKET_IN_USE)
    gc.collect()
    logger.info("engine stopped")
    return 0


async def _serve(configuration: EngineConfiguration, *, path: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    placement = choose_placement(
        device=configuration.device,
        device_indexes=configuration.device_indexes,
        compute_type=configuration.compute_type,
        replicas=configuration.replicas,
        threads=configuration.threads,
        batch_rows=configuration.batch_rows,
    )
    computed = placement.device == "cpu" and any(model.script is None for model in configuration.models)
    scheduler = CatalogScheduler(
        ConfiguredModels(path, placement=placement),
        queue_size=configuration.queue_size,
        # On the CPU all models share the cores.
        slots=placement.replicas if computed else None,
        memory_limit=None if configuration.memory_mb is None else configuration.memory_mb * 10**6,
        idle_seconds=configuration.idle_seconds,
    )
    try:
        await scheduler.start()
        if not stop.is_set():
            await _listen(configuration, scheduler=scheduler, stop=stop)
    finally:
        await scheduler.close()


async def _listen(configuration: EngineConfiguration, *, scheduler: CatalogScheduler, stop: asyncio.Event) -> None:
    server = EngineServer(scheduler)
    bound = bind_socket(configuration.socket)
    try:
        await server.start(bound)
        logger.info("engine ready on %s", configuration.socket)
        await stop.wait()
        logger.info("engine stopping")
        server.stop_accepting()
        scheduler.cancel_all()
        await server.close(patience=DRAIN_SECONDS)
    finally:
        configuration.socket.unlink(missing_ok=True)


@contextlib.contextmanager
def _sole_owner(path: Path) -> Iterator[None]:
    """Hold the lock beside the socket, so that two engines that start together cannot both serve."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.with_name(path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SocketInUse(f"The socket {path} cannot be created: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise SocketInUse(f"An engine is serving on {path} already. Stop it or choose another socket.") from error
    finally:
        os.close(descriptor)


def _refused(error: Exception, *, status: int) -> int:
    logger.error("%s", error)
    return status


if __name__ == "__main__":
    sys.exit(main())
