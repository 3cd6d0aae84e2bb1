"""The site: settings, the ASGI and Celery applications, health, and the process tree."""
