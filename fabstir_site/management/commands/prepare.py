"""`manage.py prepare`: tables, login, model and, on the embedded chain, contracts and registration."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError

from fabstir_site.provisioning import prepare
from jobs.engine_config import NothingToServe
from jobs.inference.engine import EngineUnavailable
from nodes.model_manifest import ModelError
from settlement.chain.client import ChainUnavailable, NodeRefused
from settlement.chain.deployment import DeploymentError
from settlement.chain.local import LocalChainError
from settlement.chain.signer import KeyUnusable
from settlement.host_chain import NoDeployment
from settlement.registration import RegistrationFailed

_REFUSALS = (
    ModelError,
    NothingToServe,
    EngineUnavailable,
    ChainUnavailable,
    NodeRefused,
    DeploymentError,
    LocalChainError,
    KeyUnusable,
    NoDeployment,
    RegistrationFailed,
    DatabaseError,
    OSError,
)


class Command(BaseCommand):
    help = "Bring the data directory to a state that a node can start from."
    requires_system_checks = ()

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            prepare(lambda line: self.stdout.write(f"fabstir: {line}"))
        except _REFUSALS as refusal:
            raise CommandError(str(refusal)) from refusal
