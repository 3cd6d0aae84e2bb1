"""Django settings, derived from the typed environment and from nothing else."""

from __future__ import annotations

from typing import Any

import environ
from corsheaders.defaults import default_headers
from django.templatetags.static import static
from django.urls import reverse_lazy

from fabstir_site import environment, known_secrets, logs

ENVIRONMENT = environment.load()
# Before anything can fail with one of them in its hands.
logs.keep_secret(known_secrets.secrets_of(ENVIRONMENT))
logs.guard_standard_error()
environment.share_metrics(ENVIRONMENT)
BASE_DIR = environment.CHECKOUT

SECRET_KEY = ENVIRONMENT.secret_key
DEBUG = ENVIRONMENT.debug
ALLOWED_HOSTS = list(ENVIRONMENT.allowed_hosts)
ROOT_URLCONF = "fabstir_site.urls"
ASGI_APPLICATION = "fabstir_site.asgi.application"
USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
FORMAT_MODULE_PATH = ["fabstir_site.formats"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
APPEND_SLASH = False

INSTALLED_APPS = [
    "daphne",
    "unfold",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "corsheaders",
    "rest_framework",
    "channels",
    "fabstir_site",
    "nodes",
    "jobs",
    "settlement",
]

# All of these run natively in the event loop. One that does not would hide from a view that its client
# went away, and with it the moment to stop generating.
MIDDLEWARE = [
    "fabstir_site.request_ids.RequestIdMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "fabstir_site.errors.ErrorEnvelopeMiddleware",
    "fabstir_site.middleware.SecurityMiddleware",
    "fabstir_site.middleware.SessionMiddleware",
    "fabstir_site.middleware.CommonMiddleware",
    "fabstir_site.middleware.CsrfViewMiddleware",
    "fabstir_site.middleware.AuthenticationMiddleware",
    "fabstir_site.middleware.MessageMiddleware",
    "fabstir_site.middleware.XFrameOptionsMiddleware",
    # The last, as it calls the view: everybody else's look at it comes before.
    "fabstir_site.middleware.RefusalMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]


def _databases() -> dict[str, dict[str, Any]]:
    if ENVIRONMENT.database_url is None:
        url = f"sqlite:///{ENVIRONMENT.data_dir / 'fabstir.sqlite3'}"
    else:
        url = ENVIRONMENT.database_url
    database: dict[str, Any] = dict(environ.Env.db_url_config(url))
    database["ATOMIC_REQUESTS"] = False
    # Opening one takes longer than most of what is asked of it, and the web process asks several times a prompt.
    database["CONN_MAX_AGE"] = 600
    if database["ENGINE"] == "django.db.backends.sqlite3":
        # IMMEDIATE: a deferred transaction that upgrades to a write fails at once under contention.
        # FULL: an intent that is committed must survive a power cut before the network sees it.
        # cache_size: KiB for each of some ten connections. Pages that they forget are in the system's cache.
        # cached_statements: as those, they would go on growing for hours, until every thread has run every query.
        database["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA journal_size_limit=67108864;"
            " PRAGMA cache_size=-512;",
            "cached_statements": 32,
        }
        database["TEST"] = {"NAME": str(ENVIRONMENT.data_dir / "test.sqlite3")}
    else:
        database["CONN_HEALTH_CHECKS"] = True
        database["OPTIONS"] = {
            # A forgotten transaction must not hold the locks of the money tables.
            "options": "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s",
        }
    return {"default": database}


DATABASES = _databases()

# Nothing answers on port 0: a command that needs the broker of a node that is not running says so.
REDIS_URL = ENVIRONMENT.redis_url or "redis://127.0.0.1:0/0"

CELERY_BROKER_URL = REDIS_URL
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    # Longer than any task takes: what is not acknowledged by then runs a second time beside the first. A task
    # that a killed worker took with it is not waited for; the schedule finds its work again.
    "visibility_timeout": 3 * 3600,
    "socket_connect_timeout": 2,
    "socket_timeout": 5,
}
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_ACKS_LATE = True
CELERY_TASK_SERIALIZER = "json"
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_DEFAULT_QUEUE = "default"
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_REDIRECT_STDOUTS = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1

STATIC_URL = "/static/"
STATIC_ROOT = ENVIRONMENT.data_dir / "static"

# 1 MiB is far beyond any context window in use; larger bodies are refused before they are read.
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024

# Browser clients of the marketplace come from any origin. The API knows no cookies, and the admin,
# which does, is left out.
CORS_ALLOW_ALL_ORIGINS = True
CORS_URLS_REGEX = r"^/+(v1/|tokenize$|detokenize$|health|status|livez|readyz)"
CORS_ALLOW_HEADERS = [
    *default_headers,
    "idempotency-key",
    "x-fabstir-job",
    "x-fabstir-session",
    "x-fabstir-session-token",
    "x-request-id",
    # What OpenAI's client for browsers sends with every request.
    *(
        f"x-stainless-{name}"
        for name in (
            "arch",
            "helper-method",
            "lang",
            "os",
            "package-version",
            "retry-count",
            "runtime",
            "runtime-version",
            "timeout",
        )
    ),
]
CORS_EXPOSE_HEADERS = [
    "retry-after",
    "x-request-id",
    "idempotent-replayed",
    *(f"x-ratelimit-{part}-{of}" for part in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
]

LOGIN_URL = "admin:login"
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SESSION_COOKIE_SAMESITE = "Lax"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator", "OPTIONS": {"min_length": 12}},
]

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["rest_framework.authentication.SessionAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
}

DEFAULT_EXCEPTION_REPORTER_FILTER = "fabstir_site.error_pages.SecretsFilter"
LOGGING = logs.configuration(ENVIRONMENT.log_format)


def _page(title: str, icon: str, name: str) -> dict[str, Any]:
    return {"title": title, "icon": icon, "link": reverse_lazy(f"admin:{name}")}


UNFOLD = {
    "SITE_TITLE": "Fabstir Host",
    "SITE_HEADER": "Fabstir Host",
    "SITE_SYMBOL": "bolt",
    "SITE_URL": None,
    "SHOW_HISTORY": False,
    "SHOW_VIEW_ON_SITE": False,
    "SITE_FAVICONS": [{"rel": "icon", "type": "image/svg+xml", "href": lambda request: static("nodes/favicon.svg")}],
    "STYLES": [lambda request: static("nodes/admin.css")],
    "DASHBOARD_CALLBACK": "settlement.admin.dashboard.dashboard",
    "SIDEBAR": {
        "navigation": [
            {"items": [_page("Overview", "dashboard", "index")]},
            {
                "title": "Work",
                "items": [
                    _page("Sessions and jobs", "forum", "jobs_session_changelist"),
                    _page("Requests", "smart_toy", "jobs_inferencerequest_changelist"),
                    _page("Token usage", "receipt_long", "jobs_tokenusage_changelist"),
                ],
            },
            {
                "title": "Settlement",
                "items": [
                    _page("Checkpoints", "flag", "settlement_checkpoint_changelist"),
                    _page("Transactions", "swap_horiz", "settlement_transaction_changelist"),
                    _page("Attempts", "send", "settlement_attempt_changelist"),
                    _page("Receipts", "task_alt", "settlement_receipt_changelist"),
                    _page("Earnings", "payments", "settlement_earning_changelist"),
                    _page("Withdrawals", "account_balance", "settlement_withdrawal_changelist"),
                ],
            },
            {
                "title": "Node",
                "items": [
                    _page("Host", "dns", "nodes_host_changelist"),
                    _page("Served models", "model_training", "nodes_servedmodel_changelist"),
                    _page("Contracts", "contract", "settlement_contractdeployment_changelist"),
                    _page("Chain cursor", "my_location", "settlement_chaincursor_changelist"),
                    _page("Users", "person", "auth_user_changelist"),
                ],
            },
        ],
    },
}
