"""Room 1, what is true: SQLAlchemy only. No Flask, no Celery, no Redis."""
