"""API keys: shown once, kept as a hash, limited by scope, time, revocation and quota."""

from __future__ import annotations

from datetime import timedelta
from io import StringIO

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import IntegrityError, transaction
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from jobs import api_keys
from jobs.api_keys import Limits, NewKey, Scope
from jobs.models import ApiKey, InferenceRequest, RequestState
from jobs.protocol import RequestError
from tests import factories

pytestmark = pytest.mark.django_db


def new_key(*scopes: Scope, **options: object) -> NewKey:
    return api_keys.create(name="a customer", scopes=scopes or (Scope.INFERENCE,), **options)


def refusal(secret: str, scope: Scope = Scope.INFERENCE) -> RequestError:
    with pytest.raises(RequestError) as refused:
        api_keys.recognise(secret, scope=scope)
    return refused.value


def used(key: ApiKey, *, tokens: int, **fields: object) -> InferenceRequest:
    return factories.add_request(factories.make_session(job_id=None), tokens=tokens, api_key=key, **fields)


def test_a_key_opens_what_it_is_for_and_nothing_else():
    new = new_key(Scope.MODELS)
    assert api_keys.recognise(new.secret, scope=Scope.MODELS).pk == new.row.pk
    assert (refusal(new.secret).code, refusal(new.secret).status) == ("api_key_scope", 403)


def test_the_key_itself_is_nowhere_in_its_row():
    new = new_key()
    row = ApiKey.objects.filter(pk=new.row.pk).values().get()
    assert new.secret.startswith(row["prefix"]) and len(new.secret) - len(row["prefix"]) > 27
    assert all(new.secret not in str(value) for value in row.values())


@pytest.mark.parametrize("text", ["fab_", "fab_" + "x" * 43, "fab_\x00", "fab_é"])
def test_an_unknown_key_is_refused(text):
    assert (refusal(text).code, refusal(text).status) == ("invalid_api_key", 401)


def test_a_revoked_key_is_refused_at_once():
    new = new_key()
    assert api_keys.revoke(new.row.pk)
    assert refusal(new.secret).status == 401
    assert not api_keys.revoke(new.row.pk)


def test_a_key_expires(monkeypatch):
    new = new_key(lifetime=timedelta(days=1))
    api_keys.recognise(new.secret, scope=Scope.INFERENCE)
    later = timezone.now() + timedelta(days=1, seconds=1)
    monkeypatch.setattr("django.utils.timezone.now", lambda: later)
    assert refusal(new.secret).code == "invalid_api_key"


def test_its_use_is_written_down_once_a_minute(monkeypatch):
    new = new_key()
    first = timezone.now()
    for seconds, expected in ((0, 0), (59, 0), (61, 61)):
        at = first + timedelta(seconds=seconds)
        monkeypatch.setattr("django.utils.timezone.now", lambda at=at: at)
        api_keys.recognise(new.secret, scope=Scope.INFERENCE)
        assert ApiKey.objects.get(pk=new.row.pk).last_used_at == first + timedelta(seconds=expected)


def test_a_quota_counts_prompt_and_completion_tokens_of_today():
    key = new_key(limits=Limits(tokens_per_day=100)).row
    used(key, tokens=40)  # and 7 of its prompt
    yesterday = used(key, tokens=50)
    InferenceRequest.objects.filter(pk=yesterday.pk).update(created_at=timezone.now() - timedelta(days=1))
    with transaction.atomic():
        assert api_keys.admit(key.pk) == 53


def test_a_quota_is_taken_by_running_requests_before_they_have_used_it():
    key = new_key(limits=Limits(tokens_per_day=100)).row
    running = used(key, tokens=10, max_tokens=93, state=RequestState.RUNNING, finished_at=None)
    with transaction.atomic(), pytest.raises(RequestError) as refused:
        api_keys.admit(key.pk)
    assert (refused.value.code, refused.value.status, refused.value.retry_after) == ("quota_exceeded", 429, 5)
    InferenceRequest.objects.filter(pk=running.pk).update(state=RequestState.FINISHED, finished_at=timezone.now())
    with transaction.atomic():
        assert api_keys.admit(key.pk) == 83


def test_a_used_up_quota_says_when_it_begins_anew():
    key = new_key(limits=Limits(tokens_per_day=47)).row
    used(key, tokens=40)
    with transaction.atomic(), pytest.raises(RequestError) as refused:
        api_keys.admit(key.pk)
    assert 0 < refused.value.retry_after <= 24 * 3600
    assert refused.value.details == {"tokens_per_day": 47, "tokens_used": 47}


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"may_infer": False, "may_list_models": False}, "an_api_key_may_do_something"),
        ({"tokens_per_day": 0}, "limits_of_an_api_key_allow_something"),
        ({"requests_per_minute": 0}, "limits_of_an_api_key_allow_something"),
        ({"key_hash": "fab_in_the_clear"}, "an_api_key_is_kept_as_sha256"),
        ({"expires_at": timezone.now() - timedelta(days=1)}, "an_api_key_expires_after_it_was_made"),
    ],
)
def test_the_database_refuses_what_no_key_may_be(changes, constraint):
    row = new_key().row
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        ApiKey.objects.filter(pk=row.pk).update(**changes)


def test_the_command_makes_lists_and_revokes_a_key():
    out = StringIO()
    call_command("api_keys", "create", "Ada", "--days", "30", "--tokens-per-day", "1000", stdout=out, stderr=StringIO())
    secret = out.getvalue().strip()
    row = api_keys.recognise(secret, scope=Scope.INFERENCE)
    assert (row.name, row.tokens_per_day) == ("Ada", 1000)
    listing = StringIO()
    call_command("api_keys", "list", stdout=listing)
    assert row.prefix in listing.getvalue() and secret not in listing.getvalue()
    call_command("api_keys", "revoke", row.prefix, stdout=StringIO())
    assert refusal(secret).status == 401
    with pytest.raises(CommandError, match="was revoked"):
        call_command("api_keys", "revoke", row.prefix)


FORM = {
    "name": "Ada",
    "may_infer": "on",
    "tokens_per_day": "500",
    "requests_per_minute": "",
    "tokens_per_minute": "",
    "expires_at_0": "",
    "expires_at_1": "",
}


def test_the_admin_shows_a_new_key_once(admin_client: Client):
    page = admin_client.post(reverse("admin:jobs_apikey_add"), FORM)
    row = ApiKey.objects.get()
    text = page.content.decode()
    secret = "fab_" + text.split("fab_")[1].split("<")[0]
    assert "no-store" in page.headers["Cache-Control"]
    assert api_keys.recognise(secret, scope=Scope.INFERENCE).tokens_per_day == 500
    for address in (reverse("admin:jobs_apikey_changelist"), reverse("admin:jobs_apikey_change", args=[row.pk])):
        assert secret not in admin_client.get(address).content.decode()


def test_the_admin_changes_limits_revokes_and_never_deletes(admin_client: Client):
    new = new_key()
    page = reverse("admin:jobs_apikey_change", args=[new.row.pk])
    assert admin_client.post(page, {**FORM, "tokens_per_day": "9"}).status_code == 302
    assert api_keys.recognise(new.secret, scope=Scope.INFERENCE).tokens_per_day == 9
    assert admin_client.post(reverse("admin:jobs_apikey_delete", args=[new.row.pk])).status_code == 403
    revoke = {"action": "revoke_now", "_selected_action": [new.row.pk]}
    admin_client.post(reverse("admin:jobs_apikey_changelist"), revoke)
    assert refusal(new.secret).status == 401


@pytest.mark.parametrize("field", [{"tokens_per_day": "0"}, {"expires_at_0": "2020-01-01", "expires_at_1": "00:00"}])
def test_the_admin_explains_a_limit_that_makes_no_sense(admin_client: Client, field):
    assert admin_client.post(reverse("admin:jobs_apikey_add"), {**FORM, **field}).status_code == 200
    assert not ApiKey.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_a_key_sees_its_own_usage_and_one_with_the_scope_sees_all(client: Client):
    own, other = new_key(), new_key(Scope.USAGE)
    used(own.row, tokens=40)

    def listed(secret: str, query: str = "") -> list[dict[str, object]]:
        answer = client.get(f"/v1/usage{query}", headers={"Authorization": f"Bearer {secret}"})
        return answer.json()["data"]

    assert [(row["tokens_today"], row["requests_today"]) for row in listed(own.secret)] == [(47, 1)]
    assert {row["key"] for row in listed(other.secret, "?all=1")} == {f"{k.row.prefix}…" for k in (own, other)}
    assert client.get("/v1/usage?all=1", headers={"Authorization": f"Bearer {own.secret}"}).status_code == 403
    assert client.get("/v1/usage").status_code == 401
