"""The outbox keys of a job's transactions: what they begin with, so that all of a job's can be found."""

from __future__ import annotations


def claims_of_job(deployment: str, job_id: int | None) -> str:
    """What the keys of a job's claims begin with; index and number of the try follow."""
    return f"checkpoint:{deployment}:{job_id}:"


def completions_of_job(deployment: str, job_id: int | None) -> str:
    """What the keys of a job's completing transactions begin with; the number of the try follows."""
    return f"complete:{deployment}:{job_id}:"
