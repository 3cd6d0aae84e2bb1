"""What operators ask of claims: on the command line and on a checkpoint's page."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from settlement import checkpoints
from settlement.models import Checkpoint, CheckpointState
from tests import factories

pytestmark = pytest.mark.django_db

PROVED, PAUSED = CheckpointState.PROVED, CheckpointState.PAUSED
FAILED, RETRY_AT = CheckpointState.FAILED, CheckpointState.RETRY_AT


def _say(*words: Any) -> str:
    out = io.StringIO()
    call_command("checkpoints", *map(str, words), stdout=out)
    return out.getvalue()


def _checkpoint(state: CheckpointState) -> Checkpoint:
    factories.make_world()
    checkpoint = Checkpoint.objects.order_by("pk").first()
    assert checkpoint is not None
    Checkpoint.objects.exclude(pk=checkpoint.pk).filter(state__in=checkpoints.HELD).update(state=CheckpointState.SEALED)
    Checkpoint.objects.filter(pk=checkpoint.pk).update(state=state, reason="as it was", retry_at=None)
    checkpoint.refresh_from_db()
    return checkpoint


def _last(checkpoint: Checkpoint) -> str:
    checkpoint.refresh_from_db()
    event = checkpoint.events.order_by("-id").first()
    assert event is not None and event.to_state == checkpoint.state
    return event.reason


def _ask(client: Client, checkpoint: Checkpoint, name: str, **words: str) -> int:
    address = reverse(f"admin:settlement_checkpoint_{name}_this", args=[checkpoint.pk])
    return client.post(address, {"_form_submitted": "True", **words}).status_code


def test_a_list_names_what_only_an_operator_moves_and_why() -> None:
    held = _checkpoint(PAUSED)
    line = f"{held.pk}  paused  {held.tokens} tokens  {held}  as it was"
    assert _say("list").splitlines() == [line]
    assert _say("list", "--state", "failed") == ""
    assert line in _say("list", "--job", held.session.job_id)
    assert line not in _say("list", "--job", 987_654)


def test_a_claim_is_paused_and_resumed_by_command_under_a_name(caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = _checkpoint(PROVED)
    with pytest.raises(CommandError, match="--reason"):
        _say("pause", checkpoint.pk)
    assert "paused" in _say("pause", checkpoint.pk, "--reason", "a look first", "--actor", "ada")
    assert (_last(checkpoint), checkpoint.state) == ("paused by ada: a look first", PAUSED)
    assert "resumed" in _say("resume", checkpoint.pk, "--actor", "ada")
    assert (_last(checkpoint), checkpoint.state) == ("resumed by ada", RETRY_AT)
    told = [record.getMessage() for record in caplog.records if getattr(record, "event", "") == "checkpoint_request"]
    assert told == [f"{checkpoint}: paused by ada: a look first", f"{checkpoint}: resumed by ada"]


def test_a_failed_claim_is_tried_again_by_command_and_never_merely_resumed() -> None:
    checkpoint = _checkpoint(FAILED)
    with pytest.raises(CommandError, match="retry"):
        _say("resume", checkpoint.pk)
    with pytest.raises(CommandError, match="--reason"):
        _say("retry", checkpoint.pk)
    _say("retry", checkpoint.pk, "--reason", "accepted after all", "--actor", "ada")
    assert (_last(checkpoint), checkpoint.state) == ("tried again by ada: accepted after all", RETRY_AT)


@pytest.mark.parametrize(
    ("verb", "state", "words"),
    [
        ("pause", CheckpointState.SENT, "Cancel its transaction instead"),
        ("pause", CheckpointState.PROVING, "once it is proved"),
        ("pause", CheckpointState.SETTLED, "only a claim that no transaction carries"),
        ("resume", PROVED, "nothing to resume"),
        ("retry", PAUSED, "only what failed"),
    ],
)
def test_a_step_that_the_state_does_not_allow_is_refused_with_the_reason(
    verb: str, state: CheckpointState, words: str
) -> None:
    checkpoint = _checkpoint(state)
    with pytest.raises(CommandError, match=words):
        _say(verb, checkpoint.pk, "--reason", "x")
    checkpoint.refresh_from_db()
    assert (checkpoint.state, checkpoint.reason) == (state, "as it was")


def test_one_that_moves_meanwhile_or_does_not_exist_is_said_to(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = _checkpoint(PROVED)
    pause = checkpoints.pause

    def meanwhile(row: Checkpoint, **words: str) -> bool:
        Checkpoint.objects.filter(pk=row.pk).update(state=RETRY_AT)
        return pause(row, **words)

    monkeypatch.setattr(checkpoints, "pause", meanwhile)
    with pytest.raises(CommandError, match="moved on from proved"):
        _say("pause", checkpoint.pk, "--reason", "x")
    with pytest.raises(CommandError, match="there is no checkpoint 987654"):
        _say("resume", 987_654)


def test_the_page_pauses_with_a_reason_and_resumes_under_the_users_name(admin_client: Client) -> None:
    checkpoint = _checkpoint(PROVED)
    _ask(admin_client, checkpoint, "pause")
    checkpoint.refresh_from_db()
    assert checkpoint.state == PROVED  # no reason, no pause
    assert _ask(admin_client, checkpoint, "pause", reason="a look first") == 200
    assert (_last(checkpoint), checkpoint.state) == ("paused by admin: a look first", PAUSED)
    assert _ask(admin_client, checkpoint, "resume") == 200
    assert (_last(checkpoint), checkpoint.state) == ("resumed by admin", RETRY_AT)


def test_the_page_tries_a_failed_claim_again_and_says_what_it_may_not_do(admin_client: Client) -> None:
    checkpoint = _checkpoint(FAILED)
    assert _ask(admin_client, checkpoint, "resume") == 200
    checkpoint.refresh_from_db()
    assert checkpoint.state == FAILED
    page = reverse("admin:settlement_checkpoint_change", args=[checkpoint.pk])
    assert "it can only be tried again" in admin_client.get(page).content.decode()
    assert _ask(admin_client, checkpoint, "retry", reason="accepted after all") == 200
    assert (_last(checkpoint), checkpoint.state) == ("tried again by admin: accepted after all", RETRY_AT)
    address = reverse("admin:settlement_checkpoint_resume_this", args=[987_654])
    assert admin_client.post(address, {"_form_submitted": "True"}).status_code == 404


def test_who_may_only_look_can_ask_for_nothing(client: Client) -> None:
    checkpoint = _checkpoint(PROVED)
    user = User.objects.create_user("eve", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_checkpoint"))
    client.force_login(user)
    assert [_ask(client, checkpoint, name, reason="x") for name in ("pause", "resume", "retry")] == [403] * 3
    checkpoint.refresh_from_db()
    assert checkpoint.state == PROVED
