import django.db.models.deletion
from django.db import migrations, models
from django.db.models import Q

import nodes.fields

_UNMINED = ("sealed", "proving", "proved", "queued", "sent", "retry_at", "reorged")
_UNPAID = (*_UNMINED, "mined")


class Migration(migrations.Migration):
    dependencies = [("jobs", "0002_price_precision"), ("settlement", "0002_transactions")]

    operations = [
        migrations.RemoveConstraint(model_name="checkpoint", name="a_paid_checkpoint_has_its_event"),
        migrations.AddConstraint(
            model_name="checkpoint",
            constraint=models.CheckConstraint(
                condition=~Q(state__in=("confirmed", "settled", "withdrawn"))
                | (Q(transaction__isnull=False) & Q(confirmed_at__isnull=False)),
                name="a_paid_checkpoint_has_its_event",
            ),
        ),
        migrations.AddConstraint(
            model_name="checkpoint",
            constraint=models.CheckConstraint(
                condition=~Q(state__in=("settled", "withdrawn"))
                | (Q(gross__isnull=False) & Q(host_amount__isnull=False) & Q(treasury_amount__isnull=False)),
                name="a_credited_checkpoint_has_its_amounts",
            ),
        ),
        migrations.AddIndex(
            model_name="checkpoint",
            index=models.Index(fields=["session"], condition=Q(state__in=_UNMINED), name="checkpoint_unmined"),
        ),
        migrations.AddIndex(
            model_name="checkpoint",
            index=models.Index(fields=["session"], condition=Q(state__in=_UNPAID), name="checkpoint_unpaid"),
        ),
        migrations.AddIndex(
            model_name="checkpointevent",
            index=models.Index(fields=["at"], condition=Q(to_state="proved"), name="checkpoint_proved_at"),
        ),
        migrations.CreateModel(
            name="JobScan",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("deployment", models.CharField(max_length=120, unique=True)),
                ("jobs_seen", models.PositiveBigIntegerField(default=0)),
                ("updated_at", models.DateTimeField(auto_now=True)),
            ],
        ),
        migrations.CreateModel(
            name="Closing",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("tries", models.PositiveIntegerField(default=0, help_text="Tries that came to nothing.")),
                ("retry_at", models.DateTimeField(blank=True, null=True)),
                ("reason", models.CharField(blank=True, max_length=500)),
                (
                    "ended_status",
                    models.CharField(blank=True, help_text="How a final event says that the job ended.", max_length=20),
                ),
                ("paid_gross", nodes.fields.Uint256Field(blank=True, null=True)),
                ("paid_host", nodes.fields.Uint256Field(blank=True, null=True)),
                ("tokens_unclaimable", models.BigIntegerField(default=0)),
                ("unclaimable_reason", models.CharField(blank=True, max_length=200)),
                (
                    "session",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.PROTECT, related_name="closing", to="jobs.session"
                    ),
                ),
                (
                    "transaction",
                    models.ForeignKey(
                        blank=True,
                        help_text="The newest try.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to="settlement.transaction",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=Q(tokens_unclaimable=0) | ~Q(unclaimable_reason=""),
                        name="what_is_unclaimable_has_a_reason",
                    ),
                    models.CheckConstraint(
                        condition=Q(paid_gross__isnull=True, paid_host__isnull=True)
                        | Q(paid_gross__isnull=False, paid_host__isnull=False),
                        name="a_paid_job_has_both_amounts",
                    ),
                ]
            },
        ),
    ]
