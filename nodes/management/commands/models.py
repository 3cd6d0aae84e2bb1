"""``manage.py models list|add|verify|remove``: the models on disk and in the catalog.

Translates the command line and delegates to ``model_store`` (files) and ``catalog`` (rows). Files
come first when a model is added and last when it is removed, so that no row ever names files that
are not there. Running engines notice a change at their next start.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from nodes.catalog import NameTaken, UnknownModel, listed_models, register_model, unregister_model
from nodes.model_manifest import ModelError, ModelManifest
from nodes.model_store import DEFAULT_MODEL, ModelMissing, ModelStore

BUILT_IN = "default"


class Command(BaseCommand):
    """Manage the models that this host serves."""

    help = "List, add, verify or remove the models that this host serves."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Four sub-commands; ``add`` takes where the model comes from."""
        actions = parser.add_subparsers(dest="action", required=True)
        actions.add_parser("list", help="show the served models")
        add = actions.add_parser("add", help="add a model and serve it")
        add.add_argument("source", help=f"{BUILT_IN!r} ({DEFAULT_MODEL.id}), a .gguf file or a CTranslate2 directory")
        add.add_argument("--id", help="name of the model (default: the file's or directory's name)")
        add.add_argument("--alias", action="append", default=[], help="another name; may be repeated")
        add.add_argument("--default", action="store_true", help="serve it when no model is named")
        add.add_argument("--context-length", type=int, help="token ids, if the directory does not say it")
        verify = actions.add_parser("verify", help="recompute the SHA-256 of every file")
        verify.add_argument("id", nargs="*", help="models to verify (default: all)")
        remove = actions.add_parser("remove", help="stop serving a model and delete its files")
        remove.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one sub-command; what is wrong with a model is one line and exit status 1."""
        actions = {"list": self._list, "add": self._add, "verify": self._verify, "remove": self._remove}
        store = ModelStore(settings.ENVIRONMENT.models_dir)
        try:
            actions[options["action"]](store, options)
        except (ModelError, NameTaken, UnknownModel) as error:
            raise CommandError(str(error)) from error

    def _list(self, store: ModelStore, options: dict[str, Any]) -> None:
        for model in listed_models():
            marks = " default" * model.is_default + " disabled" * (not model.enabled)
            names = ", ".join(model.aliases) or "-"
            self.stdout.write(
                f"{model.id}{marks}  aliases: {names}  context: {model.context_length}"
                f"  {model.quantization}  {model.source}"
            )

    def _add(self, store: ModelStore, options: dict[str, Any]) -> None:
        manifest = self._stored(store, options)
        register_model(
            manifest,
            path=store.path(manifest.id),
            aliases=options["alias"],
            make_default=options["default"],
        )
        self.stdout.write(f"Serving {manifest.id} ({manifest.size // 10**6} MB). Restart the engine to load it.")

    def _stored(self, store: ModelStore, options: dict[str, Any]) -> ModelManifest:
        if options["source"] in (BUILT_IN, DEFAULT_MODEL.id):
            return store.ensure_packaged(DEFAULT_MODEL, progress=self.stdout.write)
        source = Path(options["source"])
        model_id = options["id"] or source.name.removesuffix(".gguf")
        if source.is_dir():
            return store.add_directory(
                source,
                model_id=model_id,
                context_length=options["context_length"],
                progress=self.stdout.write,
            )
        return store.add_gguf(source, model_id=model_id, progress=self.stdout.write)

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
            unregister_model(options["id"])
        except UnknownModel:
            # Files without a row (a crash between the two steps) can still be removed.
            if not store.path(options["id"]).is_dir():
                raise
        try:
            store.remove(options["id"])
        except ModelMissing:
            self.stdout.write("Its files were gone already.")
        self.stdout.write(f"Removed {options['id']}.")
