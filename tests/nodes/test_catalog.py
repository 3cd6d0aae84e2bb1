"""Names mean one model, and there is one default while there is any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from nodes import catalog
from nodes.model_manifest import ModelManifest
from nodes.models import ServedModel

pytestmark = pytest.mark.django_db


def _manifest(model_id: str) -> ModelManifest:
    return ModelManifest(
        id=model_id,
        source="tests",
        architecture="llama",
        quantization="int8",
        context_length=2048,
        vocabulary_size=1000,
        bos_token_id=1,
        eos_token_id=2,
        end_token_ids=(2,),
        files={},
    )


def _register(model_id: str, *aliases: str, **options: Any) -> ServedModel:
    return catalog.register_model(_manifest(model_id), path=Path("/models") / model_id, aliases=aliases, **options)


def _defaults() -> list[str]:
    return [row.id for row in ServedModel.objects.filter(is_default=True)]


def test_a_model_answers_to_its_id_and_its_aliases() -> None:
    _register("first", "default", "tiny")
    _register("second")
    assert [catalog.resolve(name).id for name in ("first", "default", "tiny", "second")] == [
        "first",
        "first",
        "first",
        "second",
    ]


@pytest.mark.parametrize("name", ["third", "First", "", "fir"])
def test_an_unknown_name_is_refused_and_says_which_work(name: str) -> None:
    _register("first", "default")
    with pytest.raises(catalog.UnknownModel, match="first, default") as unknown:
        catalog.resolve(name)
    assert unknown.value.available == ("first", "default")
    assert unknown.value.name == name


def test_without_any_model_the_refusal_says_so() -> None:
    with pytest.raises(catalog.UnknownModel, match="Available: none"):
        catalog.resolve("first")


def test_a_disabled_model_answers_to_nothing_but_is_listed() -> None:
    _register("first")
    _register("second", "other")
    ServedModel.objects.filter(pk="second").update(enabled=False)
    with pytest.raises(catalog.UnknownModel):
        catalog.resolve("other")
    assert [row.id for row in catalog.served_models()] == ["first"]
    assert [row.id for row in catalog.listed_models()] == ["first", "second"]


@pytest.mark.parametrize(("model_id", "aliases"), [("second", ("tiny",)), ("second", ("first",)), ("tiny", ())])
def test_a_name_that_is_taken_is_refused(model_id: str, aliases: tuple[str, ...]) -> None:
    _register("first", "tiny")
    with pytest.raises(catalog.NameTaken, match="already names the model first"):
        _register(model_id, *aliases)
    assert [row.id for row in catalog.listed_models()] == ["first"]


def test_a_model_may_be_registered_again_with_its_own_names() -> None:
    _register("first", "tiny")
    renewed = _register("first", "tiny", "other")
    assert renewed.aliases == ["tiny", "other"]
    assert ServedModel.objects.count() == 1
    assert _defaults() == ["first"]


def test_the_first_model_is_the_default_until_another_is_made_it() -> None:
    _register("first")
    _register("second")
    assert _defaults() == ["first"]
    _register("third", make_default=True)
    assert _defaults() == ["third"]


def test_the_default_is_handed_over_when_its_model_goes() -> None:
    for model_id in ("a-first", "b-second", "c-third"):
        _register(model_id)
    ServedModel.objects.filter(pk="b-second").update(enabled=False)
    catalog.unregister_model("a-first")
    assert _defaults() == ["c-third"]
    catalog.unregister_model("b-second")
    assert _defaults() == ["c-third"]
    catalog.unregister_model("c-third")
    assert _defaults() == []


def test_a_model_that_is_not_there_cannot_be_removed() -> None:
    _register("first")
    with pytest.raises(catalog.UnknownModel, match="Available: first"):
        catalog.unregister_model("second")


def test_the_database_keeps_one_default_and_it_is_enabled() -> None:
    _register("first")
    _register("second")
    with pytest.raises(IntegrityError), transaction.atomic():
        ServedModel.objects.filter(pk="second").update(is_default=True)
    with pytest.raises(IntegrityError, match="default_model_is_enabled"), transaction.atomic():
        ServedModel.objects.filter(pk="first").update(enabled=False)
    with pytest.raises(IntegrityError, match="served_model_has_a_context"), transaction.atomic():
        ServedModel.objects.filter(pk="first").update(context_length=0)
