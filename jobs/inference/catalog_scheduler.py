"""The scheduler of an engine whose models change while it runs.

Guarantees: a model that was added to the configuration file is served without a restart, at the latest
when the first request names it; one that was removed from it, or has other files now, is refused or
replaced for new requests, while what runs or waits for it is answered to its end. Running generations are
never interrupted by a change. Who writes the file is not known here.
"""

from __future__ import annotations

import asyncio
import logging

from jobs.inference.configuration import ConfigurationError
from jobs.inference.engine import EngineStatus, EngineUnavailable, LoadedModel, ModelStatus, RequestRefused
from jobs.inference.scheduler import Scheduler
from jobs.inference.sources import ConfiguredModels

logger = logging.getLogger(__name__)


class CatalogScheduler(Scheduler):
    """A ``Scheduler`` of what ``configured`` names. Raises ``ConfigurationError`` if that cannot be read."""

    def __init__(
        self,
        configured: ConfiguredModels,
        *,
        queue_size: int,
        slots: int | None = None,
        memory_limit: int | None = None,
        idle_seconds: float | None = None,
    ) -> None:
        super().__init__(
            configured.read(),
            queue_size=queue_size,
            slots=slots,
            memory_limit=memory_limit,
            idle_seconds=idle_seconds,
        )
        self._configured = configured
        self._orders: set[asyncio.Future[LoadedModel]] = set()
        self._shelf.ask_when_unknown(self._look_again)

    async def refresh(self) -> tuple[LoadedModel, ...]:
        """Serve what the configuration file names now; returns that, the default first.

        Raises ``RequestRefused`` if the file cannot be used (the models then stay as they were).
        """
        if self._closing:
            raise EngineUnavailable("The engine is shutting down.")
        try:
            self._shelf.replace(self._configured.read())
        except ConfigurationError as error:
            raise RequestRefused(f"The models stay as they were: {error}") from error
        return await self.models()

    async def models(self) -> tuple[LoadedModel, ...]:
        """See ``Engine.models``: without those that only finish what they have begun."""
        return tuple(served.described() for served in self._shelf.served())

    async def status(self) -> EngineStatus:
        """See ``Engine.status``: also those that are no longer served while they finish what they have begun."""
        entries: dict[str, ModelStatus] = {}
        for entry in (await super().status()).models:
            entries.setdefault(entry.model, entry)  # a replaced model comes after the one that replaced it
        return EngineStatus(models=tuple(entries.values()))

    async def pin(self, model: str, *, pinned: bool) -> LoadedModel:
        """See ``Scheduler.pin``. It is carried out even if who asked for it goes away while the model loads."""
        order = asyncio.ensure_future(super().pin(model, pinned=pinned))
        self._orders.add(order)
        order.add_done_callback(self._orders.discard)
        return await asyncio.shield(order)

    def _look_again(self) -> None:
        """Somebody asks for an unknown model: perhaps it was added, and nobody told."""
        if self._closing or not self._configured.changed:
            return
        try:
            self._shelf.replace(self._configured.read())
        except ConfigurationError as error:
            logger.error("the models stay as they were: %s", error)
