# One image for web server, daemon and code location; the command says which.
FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /app/.venv && /app/.venv/bin/pip install --no-cache-dir uv
COPY requirements.lock pyproject.toml README.md LICENSE ./
RUN /app/.venv/bin/uv pip install --python /app/.venv/bin/python --require-hashes -r requirements.lock
COPY st_memberships_orchestration ./st_memberships_orchestration
RUN /app/.venv/bin/uv pip install --python /app/.venv/bin/python --no-deps .

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 dagster && mkdir -p /app/.data && chown dagster /app/.data
WORKDIR /app
COPY --from=build /app/.venv /app/.venv
COPY dagster.yaml workspace.yaml ./
ENV PATH="/app/.venv/bin:$PATH" DAGSTER_HOME=/app PYTHONUNBUFFERED=1
USER dagster
VOLUME /app/.data
EXPOSE 3000
# Web server by default. Daemon: `dagster-daemon run`.
# Code location: `dagster code-server start -m st_memberships_orchestration.definitions`.
CMD ["dagster-webserver", "--host", "0.0.0.0", "--port", "3000", "--workspace", "workspace.yaml"]
