"""The HTTP addresses of the host's key and claims."""

from __future__ import annotations

from django.urls import URLPattern, path

from settlement.views import ChallengeView, CheckpointsView

urlpatterns: list[URLPattern] = [
    path("v1/auth/challenge", ChallengeView.as_view()),
    path("v1/checkpoints/<str:session>", CheckpointsView.as_view()),
]
