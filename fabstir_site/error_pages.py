"""What Django's own error pages and reports may show of settings and variables: none of the node's secrets.

They are shown only with FABSTIR_DEBUG on, which is for developers; developers have keys too.
"""

from __future__ import annotations

from collections.abc import ItemsView
from types import TracebackType
from typing import Any

from django.http import HttpRequest
from django.views.debug import SafeExceptionReporterFilter

from fabstir_site.logs import redact


class SecretsFilter(SafeExceptionReporterFilter):
    """Django hides settings by their names; this hides values by what they are."""

    def cleanse_setting(self, key: str | int, value: Any) -> Any:
        cleansed = super().cleanse_setting(key, value)
        return redact(cleansed) if isinstance(cleansed, str) else cleansed

    def get_traceback_frame_variables(
        self, request: HttpRequest | None, tb_frame: TracebackType
    ) -> ItemsView[str, Any]:
        found = super().get_traceback_frame_variables(request, tb_frame)
        return {name: redact(repr(value)) for name, value in found}.items()
