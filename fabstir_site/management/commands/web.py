"""`manage.py web`: serve HTTP and WebSocket."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from fabstir_site.web import serve


class Command(BaseCommand):
    help = "Serve the API, the WebSocket and the admin on API_PORT until stopped."

    def handle(self, *args: Any, **options: Any) -> None:
        serve(host=settings.ENVIRONMENT.api_host, port=settings.ENVIRONMENT.api_port)
