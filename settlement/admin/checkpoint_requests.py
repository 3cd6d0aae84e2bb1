"""What an operator may ask on a checkpoint's page: to hold it, to let it go on, or to try it once more.

Guarantees that only who may change checkpoints by the database's permissions can ask, and that each
step stands in the checkpoint's timeline under the user's name. Carries nothing out; the workers do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse

from settlement import checkpoints
from settlement.admin.transaction_requests import ReasonForm, page_action
from settlement.checkpoints import StepRefused
from settlement.models import Checkpoint


class CheckpointRequests:
    """Buttons for a checkpoint's page."""

    actions_detail = ("pause_this", "resume_this", "retry_this")

    def has_operate_permission(self, request: HttpRequest, object_id: Any = None) -> bool:
        """Who may change checkpoints by the permissions of the database may ask for this."""
        return bool(request.user.has_perm("settlement.change_checkpoint"))

    @page_action(
        description="Pause",
        url_path="pause",
        icon="pause_circle",
        permissions=["operate"],
        dialog={
            "title": "Pause this claim?",
            "description": "Nothing happens to it until it is resumed. Its job ends without it once it has run out. "
            "Of a claim that is queued or sent, cancel the transaction instead.",
            "form_class": ReasonForm,
            "form_submit_text": "Pause the claim",
        },
    )
    def pause_this(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        said = "Paused until somebody resumes it."
        return _ask(request, checkpoints.pause, object_id, said=said, reason=form.cleaned_data["reason"])

    @page_action(
        description="Resume",
        url_path="resume",
        icon="play_circle",
        permissions=["operate"],
        dialog={
            "title": "Resume this claim?",
            "description": "It is proved, if it was not, and claimed by a new transaction.",
            "form_submit_text": "Resume the claim",
        },
    )
    def resume_this(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        return _ask(request, checkpoints.resume, object_id, said="Resumed: the worker takes its next step.")

    @page_action(
        description="Try again",
        url_path="retry",
        icon="replay",
        permissions=["operate"],
        dialog={
            "title": "Try this failed claim once more?",
            "description": "It is simulated before it costs anything. If the marketplace accepted it before, "
            "it is confirmed from that event; if it is refused for good, it fails again.",
            "form_class": ReasonForm,
            "form_submit_text": "Try again",
        },
    )
    def retry_this(self, request: HttpRequest, form: Any, object_id: str) -> HttpResponse:
        said = "The worker tries it once more."
        return _ask(request, checkpoints.retry, object_id, said=said, reason=form.cleaned_data["reason"])


def _ask(request: HttpRequest, step: Callable[..., bool], object_id: str, *, said: str, **words: str) -> HttpResponse:
    row = Checkpoint.objects.select_related("session").filter(pk=int(object_id)).first()
    if row is None:
        raise Http404(f"there is no checkpoint {object_id}")
    try:
        if step(row, actor=request.user.get_username(), **words):
            messages.success(request, said)
        else:
            messages.warning(request, f"It has just moved on from {row.state}: look again.")
    except StepRefused as refused:
        messages.warning(request, str(refused))
    return HttpResponse(headers={"HX-Redirect": reverse("admin:settlement_checkpoint_change", args=[object_id])})
