# One image for every process; the command says which. Dependencies first, so that a change of ours builds in seconds.
FROM python:3.13.9-slim-trixie AS dependencies
WORKDIR /app
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
COPY pyproject.toml setup.cfg ./
COPY ops/constraints.txt ops/
# Wheels only: what would have to be compiled is not what was tested.
RUN python -m venv /venv \
    && /venv/bin/python -m pip install --only-binary :all: --constraint ops/constraints.txt --editable .

FROM python:3.13.9-slim-trixie
RUN groupadd --gid 10001 orchestrator \
    && useradd --uid 10001 --gid orchestrator --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin orchestrator
WORKDIR /app
COPY --from=dependencies /venv /venv
COPY setup.cfg pyproject.toml celeryconfig.py Procfile ./
COPY models models
COPY orchestrator_web orchestrator_web
COPY orchestrator_tasks orchestrator_tasks
COPY orchestrator_cli orchestrator_cli
COPY migrations migrations
# The engine that runs where no other is named, and its configuration.
COPY examples examples
COPY ops/healthy.py ops/healthy.py
# Compiled here, because nothing is written later: the root file system may be read-only.
RUN /venv/bin/python -m compileall -q /app
ENV PATH=/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ORCHESTRATOR_HOME=/run/orchestrator
USER 10001:10001
EXPOSE 8000 5555
# The command without a shell, so that signals reach it. Run it with an init (docker run --init) that reaps orphans.
CMD ["python", "-m", "orchestrator_web"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "ops/healthy.py", "web"]
