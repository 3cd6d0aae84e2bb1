"""The admin site as a whole: its title, and who may log in.

Operators are Django's users; groups are not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.contrib.auth.models import Group, User

from nodes.read_only_admin import BaseAdmin

if TYPE_CHECKING:
    AdminPasswordChangeForm: Any
    UserChangeForm: Any
    UserCreationForm: Any
    BaseUserAdmin = UserAdmin[User]
else:
    # Unfold is untyped, and Django's classes take no parameters at run time.
    from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

    BaseUserAdmin = UserAdmin

admin.site.index_title = "Overview"
admin.site.unregister(Group)
admin.site.unregister(User)


@admin.register(User)
class OperatorAdmin(BaseUserAdmin, BaseAdmin):
    """Logins, with the site's own form fields."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
