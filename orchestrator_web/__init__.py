"""Room 2, what may be asked. No SQL, no Celery."""
