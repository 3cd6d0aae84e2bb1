import django.db.models.deletion
import nodes.fields
from django.db import migrations, models
from django.db.models import OuterRef, Subquery


def _carry_over(apps, schema_editor):
    """An attempt gets its transaction's nonce; a transaction that failed before it was signed gives its own back."""
    transactions = apps.get_model("settlement", "Transaction")
    attempts = apps.get_model("settlement", "Attempt")
    nonce = transactions.objects.filter(pk=OuterRef("transaction_id")).values("nonce")[:1]
    attempts.objects.filter(transaction__nonce__isnull=False).update(nonce=Subquery(nonce))
    attempts.objects.exclude(state="signed").update(sends=1)
    transactions.objects.filter(state__in=("queued", "failed")).update(nonce=None)


class Migration(migrations.Migration):
    dependencies = [("settlement", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name='Sender',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('chain_id', models.BigIntegerField()),
                ('address', nodes.fields.AddressField()),
                ('holder', models.CharField(blank=True, max_length=200)),
                ('fence', models.PositiveBigIntegerField(default=0)),
                ('leased_until', models.DateTimeField(blank=True, null=True)),
                ('paused_until', models.DateTimeField(blank=True, null=True)),
                ('paused_reason', models.CharField(blank=True, max_length=500)),
            ],
            options={
                'ordering': ['id'],
            },
        ),
        migrations.CreateModel(
            name='TransactionEvent',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('what', models.CharField(choices=[('cancel_requested', 'Cancel Requested'), ('bump_requested', 'Bump Requested'), ('cancelled', 'Cancelled'), ('bumped', 'Bumped'), ('displaced', 'Displaced'), ('reorged', 'Reorged'), ('lost', 'final, and gone from the chain'), ('gap_filled', 'Gap Filled'), ('fast_forwarded', 'nonces used elsewhere were skipped'), ('refused', 'refused for good by a node')], max_length=20)),
                ('actor', models.CharField(max_length=150)),
                ('reason', models.CharField(blank=True, max_length=500)),
                ('at', models.DateTimeField()),
                ('transaction', models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='events', to='settlement.transaction')),
            ],
            options={
                'ordering': ['id'],
            },
        ),
        migrations.RemoveConstraint(
            model_name='transaction',
            name='one_live_transaction_per_nonce',
        ),
        migrations.RemoveConstraint(
            model_name='transaction',
            name='one_transaction_in_progress_per_sender',
        ),
        migrations.RemoveConstraint(
            model_name='transaction',
            name='a_started_transaction_has_a_nonce',
        ),
        migrations.AddField(
            model_name='attempt',
            name='kind',
            field=models.CharField(choices=[('call', 'the call'), ('cancel', 'nothing, to cancel the call')], default='call', max_length=10),
        ),
        migrations.AddField(
            model_name='attempt',
            name='l1_fee',
            field=nodes.fields.Uint256Field(default=0, help_text='wei'),
        ),
        migrations.AddField(
            model_name='attempt',
            name='nonce',
            field=models.PositiveBigIntegerField(default=0),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name='attempt',
            name='outcome',
            field=models.CharField(blank=True, max_length=30),
        ),
        migrations.AddField(
            model_name='attempt',
            name='sends',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='attempt',
            name='sent_block',
            field=models.PositiveBigIntegerField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='receipt',
            name='l1_fee',
            field=nodes.fields.Uint256Field(default=0, help_text='wei'),
        ),
        migrations.AddField(
            model_name='receipt',
            name='revert',
            field=models.CharField(blank=True, help_text="The name of the contract's refusal.", max_length=200),
        ),
        migrations.AddField(
            model_name='transaction',
            name='bump_requested_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='transaction',
            name='cancel_requested_at',
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name='transaction',
            name='cost_limit',
            field=nodes.fields.Uint256Field(blank=True, help_text='wei', null=True),
        ),
        migrations.AddField(
            model_name='transaction',
            name='observed_missing',
            field=models.PositiveSmallIntegerField(default=0, help_text='How often its nonce was found used while none of its attempts was mined.'),
        ),
        migrations.AddField(
            model_name='transaction',
            name='priority',
            field=models.IntegerField(default=0, help_text='The highest is sent first.'),
        ),
        migrations.AddField(
            model_name='transaction',
            name='revert',
            field=models.CharField(blank=True, max_length=200),
        ),
        migrations.AlterField(
            model_name='attempt',
            name='state',
            field=models.CharField(choices=[('signed', 'Signed'), ('sent', 'Sent'), ('mined', 'Mined'), ('replaced', 'Replaced'), ('displaced', 'Displaced')], default='signed', max_length=20),
        ),
        migrations.AlterField(
            model_name='transaction',
            name='kind',
            field=models.CharField(choices=[('claim', 'submitProofOfWork'), ('closing_claim', 'completeSessionJobWithProof'), ('complete', 'completeSessionJob'), ('register', 'host registration'), ('withdraw', 'withdrawal'), ('timeout', 'triggerSessionTimeout'), ('sweep', 'transfer to the sweep address'), ('fill', 'nonce gap filled')], max_length=20),
        ),
        migrations.AlterField(
            model_name='transaction',
            name='state',
            field=models.CharField(choices=[('queued', 'Queued'), ('in_progress', 'In Progress'), ('sent', 'Sent'), ('mined', 'Mined'), ('final', 'Final'), ('reverted', 'Reverted'), ('cancelled', 'Cancelled'), ('failed', 'Failed')], default='queued', max_length=20),
        ),
        migrations.RunPython(_carry_over, migrations.RunPython.noop),
        migrations.AddIndex(
            model_name='receipt',
            index=models.Index(fields=['block_time'], name='receipt_block_time'),
        ),
        migrations.AddIndex(
            model_name='transaction',
            index=models.Index(fields=['chain_id', 'sender', 'state', 'nonce'], name='transaction_of_sender'),
        ),
        migrations.AddConstraint(
            model_name='transaction',
            constraint=models.UniqueConstraint(fields=('chain_id', 'sender', 'nonce'), name='one_live_transaction_per_nonce'),
        ),
        migrations.AddConstraint(
            model_name='transaction',
            constraint=models.CheckConstraint(condition=models.Q(('state__in', ('queued', 'failed', 'cancelled')), ('nonce__isnull', False), _connector='OR'), name='a_started_transaction_has_a_nonce'),
        ),
        migrations.AddConstraint(
            model_name='transaction',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('state__in', ('queued', 'failed')), _negated=True), ('nonce__isnull', True), _connector='OR'), name='a_waiting_transaction_holds_no_nonce'),
        ),
        migrations.AddConstraint(
            model_name='sender',
            constraint=models.UniqueConstraint(fields=('chain_id', 'address'), name='one_row_per_sender'),
        ),
        migrations.AddConstraint(
            model_name='sender',
            constraint=models.CheckConstraint(condition=models.Q(('holder', ''), ('leased_until__isnull', False), _connector='OR'), name='a_lease_has_an_end'),
        ),
        migrations.AddConstraint(
            model_name='sender',
            constraint=models.CheckConstraint(condition=models.Q(('paused_until__isnull', True), models.Q(('paused_reason', ''), _negated=True), _connector='OR'), name='a_pause_has_a_reason'),
        ),
    ]
