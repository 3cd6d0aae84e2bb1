"""The typed environment: the only reader of ``os.environ``.

Guarantees that every value is well-formed or start-up stops with a ``ConfigurationError`` that
names the variable; an empty value is an error, never a default. Addresses of the embedded parts
(broker, chain) come from the file their supervisor leaves under the data directory. Does not
connect to anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, TypeVar
from urllib.parse import urlsplit

from fabstir_site import environment_values as values
from jobs.access_rules import AccessRules, SpendingPolicy
from jobs.engine_options import EngineOptions
from jobs.inference.openai_http_upstream import Upstream
from jobs.socket_limits import SocketLimits
from settlement.txmanager.limits import Limits

T = TypeVar("T")
D = TypeVar("D")

EMBEDDED_CHAIN_ID = 31337
BASE_SEPOLIA_CHAIN_ID = 84532
# OP Mainnet, Base, and their test networks tell the L1 data fee at the same predeployed contract.
OP_STACK_CHAIN_IDS = frozenset({10, 8453, BASE_SEPOLIA_CHAIN_ID, 11155420})
L1_FEE_ORACLE = "0x420000000000000000000000000000000000000F"
ADMIN_NAME = "admin"
CHECKOUT = Path(__file__).resolve().parent.parent

# sun_path is 108 bytes on Linux and 104 on macOS.
_LONGEST_SOCKET_PATH = 100


class ConfigurationError(Exception):
    """The environment names something the node cannot run with. The message names the variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the embedded parts listen, as their supervisor recorded it."""

    redis_url: str | None = None
    rpc_url: str | None = None

    @staticmethod
    def path(data_dir: Path) -> Path:
        return data_dir / "run" / "addresses.json"

    @classmethod
    def load(cls, data_dir: Path) -> Addresses:
        try:
            recorded = dict(json.loads(cls.path(data_dir).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            # The second is for whoever writes there first to report.
            return cls()
        except (OSError, ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{cls.path(data_dir)} cannot be read ({error}). Delete it and start the node again."
            ) from error
        return cls(redis_url=recorded.get("redis_url"), rpc_url=recorded.get("rpc_url"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Everything the node takes from outside. Secrets are kept out of ``repr``."""

    data_dir: Path
    tools_dir: Path
    secret_key: str = field(repr=False)
    debug: bool
    allowed_hosts: tuple[str, ...]
    api_port: int
    api_host: str

    database_url: str | None = field(repr=False)
    redis_url: str | None = field(repr=False)
    embedded_broker: bool

    rpc_urls: tuple[str, ...] = field(repr=False)
    chain_id: int
    embedded_chain: bool
    contract_overrides: Mapping[str, str]
    contract_generation: str | None
    rpc_timeout_seconds: int
    limits: Limits

    host_private_key: str | None = field(repr=False)
    host_keystore: Path | None
    host_keystore_password_file: Path | None

    checkpoint_threshold: int
    checkpoint_max_age_seconds: int
    disconnect_grace_seconds: int
    idle_close_seconds: int
    value_to_gas_ratio: int
    native_price_usdc: int | None
    exposure_per_job: Mapping[str, int]
    exposure_total: Mapping[str, int]
    sweep_to: str | None
    sweep_above: Mapping[str, int]
    serve_unpaid: bool
    max_completion_tokens: int
    access: AccessRules
    socket_limits: SocketLimits

    engine_device: str
    engine_compute_type: str
    engine_queue_size: int
    engine_options: EngineOptions
    engine_upstream: Upstream | None
    model_aliases: tuple[str, ...]
    log_format: str
    otlp_endpoint: str | None = field(repr=False)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("the environment is neither copied nor stored: it holds secrets")

    @property
    def run_dir(self) -> Path:
        """Sockets, pid files and recorded addresses of the running node."""
        return self.data_dir / "run"

    @property
    def local_url(self) -> str:
        """Where this machine reaches the web process."""
        host = "127.0.0.1" if self.api_host in ("0.0.0.0", "::") else self.api_host  # noqa: S104
        return f"http://{host}:{self.api_port}"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def engine_socket(self) -> Path:
        return socket_path(self.run_dir / "engine.sock")

    @property
    def metrics_dir(self) -> Path:
        """Where the processes of this node share their figures."""
        return self.run_dir / "metrics"

    @property
    def engine_config_file(self) -> Path:
        """What the engine process reads at its start."""
        return self.run_dir / "engine.json"

    @property
    def host_key_file(self) -> Path:
        """The key that the embedded chain's host was given at first start."""
        return self.data_dir / "keys" / "embedded-host.key"

    @property
    def admin_password_file(self) -> Path:
        """The password that the first administrator was given at first start."""
        return self.data_dir / "keys" / "admin-password"

    @property
    def local_deployment_file(self) -> Path:
        return self.data_dir / "chain" / f"deployment-{self.chain_id}.json"


def socket_path(wanted: Path) -> Path:
    """``wanted``, or a short stand-in for it where the path exceeds what a Unix socket may have."""
    if len(str(wanted).encode()) <= _LONGEST_SOCKET_PATH:
        return wanted
    digest = hashlib.sha256(str(wanted).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"fabstir-{os.getuid()}-{digest}" / wanted.name


def load(environ: Mapping[str, str] | None = None) -> Environment:
    """Read the environment. Raises ``ConfigurationError``."""
    read = _Reader(os.environ if environ is None else environ)
    data_dir = read("FABSTIR_DATA_DIR", values.directory, CHECKOUT / "var")
    addresses = Addresses.load(data_dir)
    rpc_urls = read("RPC_URL", values.rpc_urls, None)
    redis_url = read("REDIS_URL", values.redis_url, None)
    embedded_chain = rpc_urls is None
    chain_id = read("CHAIN_ID", values.positive, EMBEDDED_CHAIN_ID if embedded_chain else BASE_SEPOLIA_CHAIN_ID)
    if rpc_urls is None:
        rpc_urls = (addresses.rpc_url,) if addresses.rpc_url else ()
    environment = Environment(
        data_dir=data_dir,
        tools_dir=read("FABSTIR_TOOLS_DIR", values.directory, data_dir / "tools"),
        secret_key=read("FABSTIR_SECRET_KEY", values.text, None) or _kept_secret(data_dir),
        debug=read("FABSTIR_DEBUG", values.boolean, False),
        allowed_hosts=read("FABSTIR_ALLOWED_HOSTS", values.names, ("*",)),
        api_port=read("API_PORT", values.port, 8080),
        api_host=read("FABSTIR_API_HOST", values.text, "127.0.0.1" if embedded_chain else "0.0.0.0"),  # noqa: S104
        database_url=read("DATABASE_URL", values.database_url, None),
        redis_url=redis_url or addresses.redis_url,
        embedded_broker=redis_url is None,
        rpc_urls=rpc_urls,
        chain_id=chain_id,
        embedded_chain=embedded_chain,
        contract_overrides=_contract_overrides(read),
        contract_generation=read("FABSTIR_CONTRACT_GENERATION", values.text, None),
        rpc_timeout_seconds=read("FABSTIR_RPC_TIMEOUT_SECONDS", values.positive, 15),
        limits=_limits(read, chain_id=chain_id),
        host_private_key=read("HOST_PRIVATE_KEY", values.private_key, None),
        host_keystore=read("HOST_KEYSTORE", values.existing_file, None),
        host_keystore_password_file=read("HOST_KEYSTORE_PASSWORD_FILE", values.existing_file, None),
        checkpoint_threshold=read("CHECKPOINT_THRESHOLD", values.checkpoint_threshold, 100),
        checkpoint_max_age_seconds=read("FABSTIR_CHECKPOINT_MAX_AGE_SECONDS", values.positive, 3600),
        disconnect_grace_seconds=read("FABSTIR_DISCONNECT_GRACE_SECONDS", values.natural, 60),
        idle_close_seconds=read("FABSTIR_IDLE_CLOSE_SECONDS", values.positive, 900),
        value_to_gas_ratio=read(
            "FABSTIR_VALUE_TO_GAS_RATIO", values.natural, 0 if chain_id == EMBEDDED_CHAIN_ID else 2
        ),
        native_price_usdc=read("FABSTIR_NATIVE_PRICE_USDC", values.positive, None),
        exposure_per_job=read("FABSTIR_EXPOSURE_PER_JOB", values.amounts, {}),
        exposure_total=read("FABSTIR_EXPOSURE_TOTAL", values.amounts, {}),
        sweep_to=read("FABSTIR_SWEEP_TO", values.address, None),
        sweep_above=read("FABSTIR_SWEEP_ABOVE", values.amounts, {}),
        serve_unpaid=read("FABSTIR_SERVE_UNPAID", values.boolean, chain_id == EMBEDDED_CHAIN_ID),
        max_completion_tokens=read("FABSTIR_MAX_COMPLETION_TOKENS", values.positive, 32_768),
        access=_access_rules(read, chain_id=chain_id),
        socket_limits=_socket_limits(read),
        engine_device=read("FABSTIR_DEVICE", values.one_of("auto", "cpu", "cuda"), "auto"),
        engine_compute_type=read("FABSTIR_COMPUTE_TYPE", values.text, "default"),
        engine_queue_size=read("FABSTIR_ENGINE_QUEUE", values.positive, 64),
        engine_options=_engine_options(read),
        engine_upstream=_engine_upstream(read),
        model_aliases=read("FABSTIR_MODEL_ALIASES", values.names, ("default", "tiny-vicuna", "tiny-vicuna-1b")),
        log_format=read("FABSTIR_LOG_FORMAT", values.one_of("text", "json"), "text"),
        otlp_endpoint=read("OTEL_EXPORTER_OTLP_ENDPOINT", values.http_url, None),
    )
    _check_together(environment)
    return environment


class _Reader:
    """Reads one variable; a missing one is its default, an empty or malformed one is an error."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def __call__(self, name: str, parse: Callable[[str], T], default: D) -> T | D:
        raw = self._environ.get(name)
        if raw is None:
            return default
        if not raw.strip():
            raise ConfigurationError(f"{name} is set but empty. Give it a value or unset it.")
        try:
            return parse(raw.strip())
        except ValueError as error:
            raise ConfigurationError(f"{name} {error}") from error


def share_metrics(environment: Environment) -> None:
    """Have ``prometheus_client`` share its values by files: it asks the process's environment where, once."""
    environment.metrics_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(environment.metrics_dir)


def _check_together(environment: Environment) -> None:
    if environment.host_keystore and not environment.host_keystore_password_file:
        raise ConfigurationError("HOST_KEYSTORE needs HOST_KEYSTORE_PASSWORD_FILE beside it.")
    if environment.host_keystore and environment.host_private_key:
        raise ConfigurationError("Set HOST_KEYSTORE or HOST_PRIVATE_KEY, not both.")
    if environment.sweep_above and environment.sweep_to is None:
        raise ConfigurationError("FABSTIR_SWEEP_ABOVE needs FABSTIR_SWEEP_TO beside it: the address to sweep to.")
    if environment.embedded_chain and environment.chain_id != EMBEDDED_CHAIN_ID:
        raise ConfigurationError(
            f"CHAIN_ID is {environment.chain_id} but RPC_URL is not set. Set RPC_URL to a node of that "
            f"chain, or unset CHAIN_ID to use the embedded chain {EMBEDDED_CHAIN_ID}."
        )


def _kept_secret(data_dir: Path) -> str:
    """Django's secret key: made at first use, then kept in a file only the owner can read."""
    path = data_dir / "keys" / "django-secret"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    except OSError as error:
        raise ConfigurationError(
            f"FABSTIR_DATA_DIR {data_dir} is not writable ({error.strerror}). "
            "Choose a directory that this user may write to."
        ) from error
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(48))
    return path.read_text().strip()


def _limits(read: _Reader, *, chain_id: int) -> Limits:
    embedded = chain_id == EMBEDDED_CHAIN_ID
    oracle = L1_FEE_ORACLE if chain_id in OP_STACK_CHAIN_IDS else None
    return Limits(
        max_fee_per_gas=read("FABSTIR_MAX_FEE_PER_GAS_WEI", values.positive, 100 * 10**9),
        max_cost=read("FABSTIR_MAX_TRANSACTION_COST_WEI", values.positive, 10**18 if embedded else 10**16),
        daily_budget=read("FABSTIR_DAILY_GAS_BUDGET_WEI", values.positive, 10**21 if embedded else 5 * 10**16),
        min_base_fee=read("FABSTIR_MIN_BASE_FEE_WEI", values.positive, 10**6),
        min_priority_fee=read("FABSTIR_MIN_PRIORITY_FEE_WEI", values.natural, 0),
        resend_after=timedelta(seconds=read("FABSTIR_RESEND_AFTER_SECONDS", values.positive, 30)),
        bump_after=timedelta(seconds=read("FABSTIR_BUMP_AFTER_SECONDS", values.positive, 90)),
        max_in_flight=read("FABSTIR_MAX_IN_FLIGHT", values.positive, 64),
        confirmations=read("FABSTIR_CONFIRMATIONS", values.positive, 1 if embedded else 12),
        finality=read("FABSTIR_FINALITY", values.finality, "depth"),
        fee_oracle=read("FABSTIR_L1_FEE_ORACLE", values.address, oracle),
    )


def _access_rules(read: _Reader, *, chain_id: int) -> AccessRules:
    # The one place that knows where deposits are worth something.
    embedded = chain_id == EMBEDDED_CHAIN_ID
    policy = values.one_of(*(policy.value for policy in SpendingPolicy))
    usual = SpendingPolicy.OPEN if embedded else SpendingPolicy.DEPOSITOR
    return AccessRules(
        spending=SpendingPolicy(read("FABSTIR_SPENDING", policy, usual)),
        session_authorizers=read("FABSTIR_SESSION_AUTHORIZERS", values.session_authorizers, {}),
        require_api_key=read("FABSTIR_REQUIRE_API_KEY", values.boolean, False),
        requests_per_minute=read("FABSTIR_REQUESTS_PER_MINUTE", values.natural, 0 if embedded else 600) or None,
        tokens_per_minute=read("FABSTIR_TOKENS_PER_MINUTE", values.natural, 0) or None,
        trusted_proxies=read("FABSTIR_TRUSTED_PROXIES", values.networks, ()),
    )


def _socket_limits(read: _Reader) -> SocketLimits:
    usual = SocketLimits()
    return SocketLimits(
        max_message_bytes=read("FABSTIR_WS_MAX_MESSAGE_BYTES", values.positive, usual.max_message_bytes),
        connections_per_address=read(
            "FABSTIR_WS_CONNECTIONS_PER_ADDRESS", values.positive, usual.connections_per_address
        ),
        messages_per_second=read("FABSTIR_WS_MESSAGES_PER_SECOND", values.positive, usual.messages_per_second),
        idle_seconds=read("FABSTIR_WS_IDLE_SECONDS", values.positive, usual.idle_seconds),
        ping_seconds=read("FABSTIR_WS_PING_SECONDS", values.positive, usual.ping_seconds),
        plaintext_seconds=read("FABSTIR_WS_PLAINTEXT_SECONDS", values.natural, usual.plaintext_seconds),
        slow_reader_seconds=read("FABSTIR_WS_SLOW_READER_SECONDS", values.positive, usual.slow_reader_seconds),
    )


def _engine_options(read: _Reader) -> EngineOptions:
    return EngineOptions(
        replicas=read("FABSTIR_ENGINE_REPLICAS", values.positive, None),
        threads=read("FABSTIR_ENGINE_THREADS", values.positive, None),
        batch_rows=read("FABSTIR_ENGINE_BATCH_ROWS", values.positive, None),
        gpus=read("FABSTIR_ENGINE_GPUS", values.numbers, None),
        memory_mb=read("FABSTIR_ENGINE_MEMORY_MB", values.positive, None),
        # 0: never unloaded.
        idle_seconds=read("FABSTIR_ENGINE_IDLE_SECONDS", values.natural, 3600) or None,
        pinned=read("FABSTIR_ENGINE_PINNED", values.names, ()),
    )


def _engine_upstream(read: _Reader) -> Upstream | None:
    """The inference server that serves instead of this node's own engine, if one does."""
    kind = read("FABSTIR_ENGINE_KIND", values.one_of("ctranslate2", "openai_http"), "ctranslate2")
    url = read("FABSTIR_ENGINE_URL", values.http_url, None)
    key = read("FABSTIR_ENGINE_API_KEY", values.text, None)
    models = read("FABSTIR_ENGINE_MODELS", values.model_names, {})
    context_length = read("FABSTIR_ENGINE_CONTEXT_LENGTH", values.positive, None)
    silence_seconds = read("FABSTIR_ENGINE_TIMEOUT_SECONDS", values.positive, 120)
    in_flight = read("FABSTIR_ENGINE_QUEUE", values.positive, 64)
    if kind == "ctranslate2":
        if url is not None:
            raise ConfigurationError("FABSTIR_ENGINE_URL is set: set FABSTIR_ENGINE_KIND to openai_http, or unset it.")
        return None
    if url is None:
        raise ConfigurationError("FABSTIR_ENGINE_KIND is openai_http: set FABSTIR_ENGINE_URL to the inference server.")
    if key is not None and "@" in urlsplit(url).netloc:
        raise ConfigurationError("FABSTIR_ENGINE_URL holds a name or password: remove it or FABSTIR_ENGINE_API_KEY.")
    return Upstream(
        url=url,
        api_key=key,
        models=models,
        context_length=context_length,
        silence_seconds=silence_seconds,
        in_flight=in_flight,
    )


def _contract_overrides(read: _Reader) -> dict[str, str]:
    """Addresses that replace those of the chain's deployment file, by contract name."""
    variables = {
        "JobMarketplace": "CONTRACT_JOB_MARKETPLACE",
        "HostEarnings": "CONTRACT_HOST_EARNINGS",
        "ProofSystem": "CONTRACT_PROOF_SYSTEM",
        "NodeRegistry": "CONTRACT_NODE_REGISTRY",
        "ModelRegistry": "CONTRACT_MODEL_REGISTRY",
        "USDC": "USDC_TOKEN",
    }
    found = {contract: read(variable, values.address, None) for contract, variable in variables.items()}
    return {contract: address for contract, address in found.items() if address is not None}
