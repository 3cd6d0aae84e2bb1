"""Earnings that can be taken back after a reorg, their running totals, and withdrawals."""

import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models

import nodes.fields


def date_earnings(apps, schema_editor):
    """Earlier rows keep the time of their booking, from which their day follows."""
    apps.get_model("settlement", "Earning").objects.update(at=models.F("created_at"))


def add_up(apps, schema_editor):
    """The sums of the rows that earlier releases booked."""
    total = apps.get_model("settlement", "EarningTotal")
    sums = {}
    rows = apps.get_model("settlement", "Earning").objects.order_by("id")
    for row in rows.iterator():
        scopes = ["all", f"day:{row.at.date().isoformat()}"]
        if row.session_id is not None:
            scopes.append(f"job:{row.session_id}")
        for scope in scopes:
            session = row.session_id if scope.startswith("job:") else None
            found = sums.setdefault((scope, session, row.deployment, row.token, row.kind), [0, 0])
            found[0] += row.amount
            found[1] += 1
    for (scope, session, deployment, token, kind), (booked, count) in sums.items():
        total.objects.create(
            scope=scope,
            session_id=session,
            deployment=deployment,
            token=token,
            kind=kind,
            booked=booked,
            taken_back=0,
            rows=count,
        )


class Migration(migrations.Migration):
    dependencies = [
        ("jobs", "0002_price_precision"),
        ("settlement", "0003_checkpoints"),
    ]

    operations = [
        migrations.CreateModel(
            name='EarningTotal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('scope', models.CharField(help_text="all, day:2026-11-22, or job:<id of the session's row>", max_length=40)),
                ('deployment', models.CharField(max_length=120)),
                ('token', nodes.fields.AddressField()),
                ('kind', models.CharField(choices=[('host', 'credited to the host'), ('treasury', 'credited to the treasury'), ('refund', 'refunded to the depositor'), ('gas', 'gas paid by the host'), ('withdrawal', 'withdrawn by the host'), ('sweep', "swept to the operator's address")], max_length=20)),
                ('booked', nodes.fields.Uint256Field(default=0)),
                ('taken_back', nodes.fields.Uint256Field(default=0)),
                ('rows', models.PositiveBigIntegerField(default=0)),
            ],
            options={
                'ordering': ['scope', 'deployment', 'token', 'kind'],
            },
        ),
        migrations.CreateModel(
            name='GasCursor',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('deployment', models.CharField(max_length=120, unique=True)),
                ('transaction_id', models.BigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name='LedgerCheck',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('deployment', models.CharField(blank=True, max_length=120)),
                ('part', models.CharField(help_text='database or chain', max_length=20)),
                ('at', models.DateTimeField()),
                ('counts', models.JSONField(help_text='Violations by invariant.')),
                ('findings', models.JSONField(default=list, help_text='The first of them, in words.')),
            ],
            options={
                'ordering': ['part'],
            },
        ),
        migrations.CreateModel(
            name='Withdrawal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('deployment', models.CharField(max_length=120)),
                ('kind', models.CharField(choices=[('withdraw', 'from HostEarnings to the host'), ('sweep', "from the host to the operator's address")], default='withdraw', max_length=20)),
                ('tokens', models.JSONField()),
                ('amount', nodes.fields.Uint256Field(blank=True, null=True)),
                ('request_key', models.CharField(max_length=120)),
                ('requested_by', models.CharField(max_length=150)),
                ('forced', models.BooleanField(default=False, help_text='Sent although the gas may be worth more.')),
                ('state', models.CharField(choices=[('requested', 'Requested'), ('sent', 'Sent'), ('final', 'Final'), ('failed', 'Failed')], default='requested', max_length=20)),
                ('reason', models.CharField(blank=True, max_length=500)),
                ('created_at', models.DateTimeField(auto_now_add=True)),
                ('finished_at', models.DateTimeField(blank=True, null=True)),
            ],
            options={
                'ordering': ['-id'],
            },
        ),
        migrations.RemoveConstraint(
            model_name='earning',
            name='one_earning_per_event',
        ),
        migrations.AddField(
            model_name='earning',
            name='at',
            field=models.DateTimeField(default=django.utils.timezone.now),
        ),
        migrations.AddField(
            model_name='earning',
            name='occurrence',
            field=models.PositiveIntegerField(default=0, help_text='How often a reorg took this event back before.'),
        ),
        migrations.AddField(
            model_name='earning',
            name='reverses',
            field=models.OneToOneField(blank=True, help_text='Taken back.', null=True, on_delete=django.db.models.deletion.PROTECT, related_name='reversal', to='settlement.earning'),
        ),
        migrations.AlterField(
            model_name='earning',
            name='kind',
            field=models.CharField(choices=[('host', 'credited to the host'), ('treasury', 'credited to the treasury'), ('refund', 'refunded to the depositor'), ('gas', 'gas paid by the host'), ('withdrawal', 'withdrawn by the host'), ('sweep', "swept to the operator's address")], max_length=20),
        ),
        migrations.AddIndex(
            model_name='earning',
            index=models.Index(fields=['deployment', 'token', 'kind'], name='earning_deployment_token'),
        ),
        migrations.AddIndex(
            model_name='earning',
            index=models.Index(fields=['transaction_hash'], name='earning_transaction'),
        ),
        migrations.AddConstraint(
            model_name='earning',
            constraint=models.UniqueConstraint(condition=models.Q(('reverses__isnull', True)), fields=('deployment', 'transaction_hash', 'log_index', 'kind', 'occurrence'), name='one_earning_per_event'),
        ),
        migrations.AddField(
            model_name='earningtotal',
            name='session',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='totals', to='jobs.session'),
        ),
        migrations.AddConstraint(
            model_name='ledgercheck',
            constraint=models.UniqueConstraint(fields=('deployment', 'part'), name='one_last_check_per_part'),
        ),
        migrations.AddField(
            model_name='withdrawal',
            name='transaction',
            field=models.OneToOneField(blank=True, null=True, on_delete=django.db.models.deletion.PROTECT, related_name='withdrawal', to='settlement.transaction'),
        ),
        migrations.AddConstraint(
            model_name='earningtotal',
            constraint=models.UniqueConstraint(fields=('scope', 'deployment', 'token', 'kind'), name='one_total_per_sum'),
        ),
        migrations.AddConstraint(
            model_name='earningtotal',
            constraint=models.CheckConstraint(condition=models.Q(('taken_back__lte', models.F('booked'))), name='no_more_taken_back_than_booked'),
        ),
        migrations.AddConstraint(
            model_name='withdrawal',
            constraint=models.UniqueConstraint(fields=('deployment', 'request_key'), name='one_withdrawal_per_request'),
        ),
        migrations.AddConstraint(
            model_name='withdrawal',
            constraint=models.UniqueConstraint(condition=models.Q(('state__in', ('requested', 'sent'))), fields=('deployment', 'kind'), name='one_withdrawal_of_a_kind_at_a_time'),
        ),
        migrations.AddConstraint(
            model_name='withdrawal',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('state__in', ('sent', 'final')), _negated=True), ('transaction__isnull', False), _connector='OR'), name='a_sent_withdrawal_has_a_transaction'),
        ),
        migrations.RunPython(date_earnings, migrations.RunPython.noop, elidable=True),
        migrations.RunPython(add_up, migrations.RunPython.noop, elidable=True),
    ]
