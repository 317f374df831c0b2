# One image for web server, daemon, code location and workers; the command says which.
# By digest: a tag can be moved. Renew both lines together, for the fixes of Debian and Python.
FROM python:3.11-slim@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93 AS build
WORKDIR /app
# Compiled once: who runs the image may not write there, so each run would compile all of Dagster, twice its own cost.
ENV UV_COMPILE_BYTECODE=1
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir uv==0.13.9
# What the project needs in the versions and with the hashes of the lock, without its test tools.
COPY requirements.lock pyproject.toml README.md LICENSE dagster.yaml ./
RUN .venv/bin/uv pip install --python .venv/bin/python --no-cache \
    --constraints requirements.lock --all-extras -r pyproject.toml
COPY st_memberships_orchestration ./st_memberships_orchestration
RUN .venv/bin/uv pip install --python .venv/bin/python --no-cache --no-deps . \
    && .venv/bin/uv pip uninstall --python .venv/bin/python uv

FROM python:3.11-slim@sha256:db3ff2e1800a8581e2c48a27c3995339d47bdf046da21c7627accd3d51053a93
RUN python -m compileall -q -x '/(lib2to3|test)/' /usr/local/lib/python3.11
# Writable: what a run leaves beside its tables, and the folder in which Dagster's tools make theirs.
RUN useradd --create-home --uid 10001 dagster && mkdir -m 700 -p /app/.data && chown dagster /app /app/.data
WORKDIR /app
COPY --from=build /app/.venv /app/.venv
# Dagster's chart for Kubernetes starts `dagster-webserver` by this name: here it has the guard, too.
RUN printf '#!/bin/sh\nexec st-memberships webserver "$@"\n' > .venv/bin/dagster-webserver
COPY dagster.yaml workspace.yaml ./
ENV PATH="/app/.venv/bin:$PATH" DAGSTER_HOME=/app PYTHONUNBUFFERED=1
# Four libraries, one heap each: a sixth less memory for a long history, at nearly the same speed (docs/benchmarks.md).
ENV ARROW_DEFAULT_MEMORY_POOL=system MALLOC_ARENA_MAX=1 _RJEM_MALLOC_CONF=narenas:1 OPENBLAS_NUM_THREADS=1
# Time zones by the locked package: the image's own can be older, and days and months then begin at another hour.
ENV PYTHONTZPATH=
USER 10001
VOLUME /app/.data
EXPOSE 3000
# Web server by default. Daemon: `dagster-daemon run`.
# Code location: `dagster code-server start -m st_memberships_orchestration.definitions`.
CMD ["st-memberships", "webserver", "--host", "0.0.0.0", "--port", "3000", "--workspace", "workspace.yaml"]
