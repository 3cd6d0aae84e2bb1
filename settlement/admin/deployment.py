"""Admin pages of the contracts as read from the chain, and of how far the chain has been read."""

from __future__ import annotations

from django.contrib import admin
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from nodes.read_only_admin import NOTHING, ReadOnlyAdmin, badge, chain_value
from settlement.admin.links import address_value, block_value
from settlement.amounts import format_basis_points, format_shares
from settlement.explorer import chain_id_of
from settlement.models import ChainCursor, ContractDeployment


@admin.register(ContractDeployment)
class ContractDeploymentAdmin(ReadOnlyAdmin):
    """The contract configuration that this node settles with."""

    list_display = ("title", "address_short", "chain_id", "generation", "code", "fee", "checked_at")
    list_filter = ("chain_id", "generation", "name")
    search_fields = ("name", "deployment")
    address_lookups = ("address",)
    hash_lookups = ("code_hash",)
    fieldsets = (
        (None, {"fields": ("title", "address_in_full", "chain_id", "generation", "deployment")}),
        ("Read from the chain", {"fields": ("code", "code_hash_in_full", "fee", "claimants", "values", "checked_at")}),
    )

    @admin.display(description="contract", ordering="name")
    def title(self, contract: ContractDeployment) -> str:
        return contract.name.replace("_", " ")

    @admin.display(description="address", ordering="address")
    def address_short(self, contract: ContractDeployment) -> SafeString | str:
        return address_value(contract.address, chain_id=contract.chain_id, short=True)

    @admin.display(description="address")
    def address_in_full(self, contract: ContractDeployment) -> SafeString | str:
        return address_value(contract.address, chain_id=contract.chain_id)

    @admin.display(description="code")
    def code(self, contract: ContractDeployment) -> SafeString:
        return badge("found", colour="success") if contract.code_hash else badge("no code", colour="danger")

    @admin.display(description="code hash")
    def code_hash_in_full(self, contract: ContractDeployment) -> SafeString | str:
        return chain_value(contract.code_hash)

    @admin.display(description="fee (host / treasury)", ordering="fee_basis_points")
    def fee(self, contract: ContractDeployment) -> str:
        fee = contract.fee_basis_points
        if fee is None:
            return NOTHING
        return f"{fee} basis points = {format_basis_points(fee)} ({format_shares(fee)})"

    @admin.display(description="further settings")
    def values(self, contract: ContractDeployment) -> SafeString | str:
        if not contract.settings:
            return NOTHING
        rows = ((name.replace("_", " "), str(value)) for name, value in contract.settings.items())
        return format_html(
            '<table class="plain-table">{}</table>',
            format_html_join("", '<tr><th>{}</th><td class="chain-value">{}</td></tr>', rows),
        )


@admin.register(ChainCursor)
class ChainCursorAdmin(ReadOnlyAdmin):
    """The last block whose events have been applied, per deployment."""

    list_display = ("deployment", "block", "hash_short", "updated_at")
    search_fields = ("deployment",)
    ordering = ("deployment",)
    hash_lookups = ("block_hash",)
    fields = ("deployment", "block", "hash_in_full", "updated_at")

    @admin.display(description="block", ordering="block_number")
    def block(self, cursor: ChainCursor) -> SafeString | str:
        return block_value(cursor.block_number, chain_id=chain_id_of(cursor.deployment))

    @admin.display(description="block hash")
    def hash_short(self, cursor: ChainCursor) -> SafeString | str:
        return chain_value(cursor.block_hash, short=True)

    @admin.display(description="block hash")
    def hash_in_full(self, cursor: ChainCursor) -> SafeString | str:
        return chain_value(cursor.block_hash)
