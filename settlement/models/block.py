"""How far the chain has been read."""

from __future__ import annotations

from django.db import models

from nodes.fields import Hash32Field


class ChainCursor(models.Model):
    """The last block whose events of a deployment have been applied."""

    deployment = models.CharField(max_length=120, unique=True)
    block_number = models.PositiveBigIntegerField()
    block_hash = Hash32Field()
    updated_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"{self.deployment} at block {self.block_number}"
