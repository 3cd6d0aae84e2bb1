"""Sessions are looked up by a job's id alone, whichever deployment it is of."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0003_first_claim")]

    operations = [
        migrations.AddIndex(
            model_name="session",
            index=models.Index(fields=["job_id"], name="session_job_id"),
        ),
    ]
