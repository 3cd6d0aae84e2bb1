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
import re
import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
D = TypeVar("D")

EMBEDDED_CHAIN_ID = 31337
BASE_SEPOLIA_CHAIN_ID = 84532
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
    confirmations: int
    max_fee_per_gas_wei: int

    host_private_key: str | None = field(repr=False)
    host_keystore: Path | None
    host_keystore_password_file: Path | None

    checkpoint_threshold: int
    checkpoint_max_age_seconds: int
    disconnect_grace_seconds: int
    idle_close_seconds: int
    serve_unpaid: bool
    max_completion_tokens: int

    engine_device: str
    engine_compute_type: str
    engine_queue_size: int
    model_aliases: tuple[str, ...]
    log_format: str

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
    data_dir = read("FABSTIR_DATA_DIR", _directory, CHECKOUT / "var")
    addresses = Addresses.load(data_dir)
    rpc_urls = read("RPC_URL", _rpc_urls, None)
    redis_url = read("REDIS_URL", _redis_url, None)
    embedded_chain = rpc_urls is None
    chain_id = read("CHAIN_ID", _positive, EMBEDDED_CHAIN_ID if embedded_chain else BASE_SEPOLIA_CHAIN_ID)
    if rpc_urls is None:
        rpc_urls = (addresses.rpc_url,) if addresses.rpc_url else ()
    environment = Environment(
        data_dir=data_dir,
        tools_dir=read("FABSTIR_TOOLS_DIR", _directory, data_dir / "tools"),
        secret_key=read("FABSTIR_SECRET_KEY", _text, None) or _kept_secret(data_dir),
        debug=read("FABSTIR_DEBUG", _boolean, False),
        allowed_hosts=read("FABSTIR_ALLOWED_HOSTS", _names, ("*",)),
        api_port=read("API_PORT", _port, 8080),
        api_host=read("FABSTIR_API_HOST", _text, "127.0.0.1" if embedded_chain else "0.0.0.0"),  # noqa: S104
        database_url=read("DATABASE_URL", _database_url, None),
        redis_url=redis_url or addresses.redis_url,
        embedded_broker=redis_url is None,
        rpc_urls=rpc_urls,
        chain_id=chain_id,
        embedded_chain=embedded_chain,
        contract_overrides=_contract_overrides(read),
        contract_generation=read("FABSTIR_CONTRACT_GENERATION", _text, None),
        confirmations=read("FABSTIR_CONFIRMATIONS", _positive, 1 if chain_id == EMBEDDED_CHAIN_ID else 12),
        max_fee_per_gas_wei=read("FABSTIR_MAX_FEE_PER_GAS_WEI", _positive, 100 * 10**9),
        host_private_key=read("HOST_PRIVATE_KEY", _private_key, None),
        host_keystore=read("HOST_KEYSTORE", _existing_file, None),
        host_keystore_password_file=read("HOST_KEYSTORE_PASSWORD_FILE", _existing_file, None),
        checkpoint_threshold=read("CHECKPOINT_THRESHOLD", _checkpoint_threshold, 100),
        checkpoint_max_age_seconds=read("FABSTIR_CHECKPOINT_MAX_AGE_SECONDS", _positive, 3600),
        disconnect_grace_seconds=read("FABSTIR_DISCONNECT_GRACE_SECONDS", _natural, 60),
        idle_close_seconds=read("FABSTIR_IDLE_CLOSE_SECONDS", _positive, 900),
        serve_unpaid=read("FABSTIR_SERVE_UNPAID", _boolean, chain_id == EMBEDDED_CHAIN_ID),
        max_completion_tokens=read("FABSTIR_MAX_COMPLETION_TOKENS", _positive, 32_768),
        engine_device=read("FABSTIR_DEVICE", _one_of("auto", "cpu", "cuda"), "auto"),
        engine_compute_type=read("FABSTIR_COMPUTE_TYPE", _text, "default"),
        engine_queue_size=read("FABSTIR_ENGINE_QUEUE", _positive, 64),
        model_aliases=read("FABSTIR_MODEL_ALIASES", _names, ("default", "tiny-vicuna", "tiny-vicuna-1b")),
        log_format=read("FABSTIR_LOG_FORMAT", _one_of("text", "json"), "text"),
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


def _check_together(environment: Environment) -> None:
    if environment.host_keystore and not environment.host_keystore_password_file:
        raise ConfigurationError("HOST_KEYSTORE needs HOST_KEYSTORE_PASSWORD_FILE beside it.")
    if environment.host_keystore and environment.host_private_key:
        raise ConfigurationError("Set HOST_KEYSTORE or HOST_PRIVATE_KEY, not both.")
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
    found = {contract: read(variable, _address, None) for contract, variable in variables.items()}
    return {contract: address for contract, address in found.items() if address is not None}


def _text(raw: str) -> str:
    return raw


def _names(raw: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in raw.split(","))
    if not all(names):
        # Items may be URLs with tokens: they are not shown.
        raise ValueError("must be a comma-separated list without empty items.")
    return names


def _boolean(raw: str) -> bool:
    known = {
        "1": True,
        "true": True,
        "on": True,
        "yes": True,
        "0": False,
        "false": False,
        "off": False,
        "no": False,
    }
    if raw.lower() not in known:
        raise ValueError(f"must be on or off, got {raw!r}.")
    return known[raw.lower()]


def _natural(raw: str) -> int:
    if not re.fullmatch(r"[0-9]{1,30}", raw):
        raise ValueError(f"must be a whole number of 0 or more, got {raw!r}.")
    return int(raw)


def _positive(raw: str) -> int:
    number = _natural(raw)
    if number == 0:
        raise ValueError("must be 1 or more, got 0.")
    return number


def _port(raw: str) -> int:
    number = _positive(raw)
    if number > 65535:
        raise ValueError(f"must be a TCP port (1 to 65535), got {raw}.")
    return number


def _checkpoint_threshold(raw: str) -> int:
    number = _positive(raw)
    if number < 100:
        raise ValueError(f"must be 100 or more, since the contract refuses smaller claims; got {raw}.")
    return number


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(raw: str) -> str:
        if raw not in values:
            raise ValueError(f"must be one of {', '.join(values)}, got {raw!r}.")
        return raw

    return parse


def _directory(raw: str) -> Path:
    path = _path(raw)
    if path.exists() and not path.is_dir():
        raise ValueError(f"must be a directory, but {path} is a file.")
    return path


def _existing_file(raw: str) -> Path:
    path = _path(raw)
    if not path.is_file():
        raise ValueError(f"names {path}, which is not a file.")
    return path


def _path(raw: str) -> Path:
    try:
        path = Path(raw).expanduser().absolute()
        path.exists()
    except (OSError, RuntimeError) as error:
        raise ValueError(f"cannot be used as a path: {error}.") from error
    return path


def _address(raw: str) -> str:
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", raw):
        raise ValueError(f"must be a contract address (0x and 40 hex digits), got {raw!r}.")
    return raw


def _private_key(raw: str) -> str:
    # The value itself must not reach the message.
    if not re.fullmatch(r"(0x)?[0-9a-fA-F]{64}", raw):
        raise ValueError("must be a private key of 64 hex digits (value not shown).")
    return raw


def _url(raw: str, schemes: tuple[str, ...]) -> str:
    # URLs may carry tokens or passwords: name the scheme only.
    try:
        parts = urlsplit(raw)
        _ = parts.port
    except ValueError:
        raise ValueError("must be a URL with a valid host and port (value not shown).") from None
    if parts.scheme not in schemes or not (parts.netloc or parts.path):
        raise ValueError(f"must be a URL with one of the schemes {', '.join(schemes)}, got scheme {parts.scheme!r}.")
    return raw


def _rpc_urls(raw: str) -> tuple[str, ...]:
    return tuple(_url(part, ("http", "https")) for part in _names(raw))


def _redis_url(raw: str) -> str:
    return _url(raw, ("redis", "rediss"))


def _database_url(raw: str) -> str:
    return _url(raw, ("postgres", "postgresql", "sqlite"))
