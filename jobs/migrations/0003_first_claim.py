from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('jobs', '0002_price_precision'),
    ]

    operations = [
        migrations.AddField(
            model_name='session',
            name='first_claim_tokens',
            field=models.PositiveBigIntegerField(default=0, help_text='The marketplace refuses a first claim of fewer tokens.'),
        ),
    ]
