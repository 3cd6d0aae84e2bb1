from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "fabstir_site"
    verbose_name = "Fabstir host"
