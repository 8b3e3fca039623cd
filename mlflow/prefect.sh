#!/usr/bin/env bash
# Prefect's server: its API, its pages and its services, on the database that runs write to.
#
#   mlflow/prefect.sh                                        this machine only, no password: http://127.0.0.1:4200
#   PREFECT_SERVER_API_HOST=0.0.0.0 ... mlflow/prefect.sh    for a team; refuses to start without a password (see ../docs/servers.md)
#
# PREFECT_SERVER_API_HOST, _PORT        where it listens (127.0.0.1, 4200)
# PREFECT_API_DATABASE_CONNECTION_URL   postgresql+asyncpg://USER@HOST/DATABASE (SQLite in POSTTRAIN_HOME, or in output/)
# PREFECT_SERVER_API_AUTH_STRING        USER:PASSWORD; once it is set, nobody comes in without it
# PREFECT_UI_URL                        how browsers reach it, e.g. https://prefect.example.org; needed beyond this machine
# Further options are passed on to `prefect server start`.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=mlflow/refusals.sh
source "$root/mlflow/refusals.sh"
host="${PREFECT_SERVER_API_HOST:-127.0.0.1}"
port="${PREFECT_SERVER_API_PORT:-4200}"
auth="${PREFECT_SERVER_API_AUTH_STRING:-}"
python="${PYTHON:-$root/.venv/bin/python}"

require_python "$python"
forbid_options "PREFECT_SERVER_API_HOST=--host" "PREFECT_SERVER_API_PORT=--port" "PREFECT_SERVER_ANALYTICS_ENABLED=--analytics-on" -- "$@"

if ! is_loopback "$host"; then
  [[ -n "$auth" ]] || refuse "PREFECT_SERVER_API_HOST can be reached by others: set PREFECT_SERVER_API_AUTH_STRING to USER:PASSWORD"
  [[ -n "${PREFECT_UI_URL:-}" ]] || refuse "set PREFECT_UI_URL to how browsers reach this server, e.g. https://prefect.example.org"
fi
if [[ -n "$auth" ]]; then
  [[ "$auth" == ?*:* ]] || refuse "PREFECT_SERVER_API_AUTH_STRING is not USER:PASSWORD"
  require_password "the password in PREFECT_SERVER_API_AUTH_STRING" "${auth#*:}"
fi
case "${PREFECT_API_DATABASE_CONNECTION_URL:-}" in
  '' | postgresql+asyncpg://* | sqlite+aiosqlite://*) ;;
  *) refuse "PREFECT_API_DATABASE_CONNECTION_URL begins with neither postgresql+asyncpg:// nor sqlite+aiosqlite://" ;;
esac

export PREFECT_HOME="${PREFECT_HOME:-${POSTTRAIN_HOME:-$root/output}/prefect}"
mkdir -p "$PREFECT_HOME"
ui_url="${PREFECT_UI_URL:-http://127.0.0.1:$port}"
origins="${ui_url%/}"
[[ -n "${PREFECT_UI_URL:-}" ]] || origins+=",http://localhost:$port"
export PREFECT_UI_URL="${ui_url%/}"
export PREFECT_SERVER_UI_API_URL="$PREFECT_UI_URL/api"
# Only its own pages may call it from a browser: without a password, any other page that is open could start runs.
export PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS="${PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS:-$origins}"
export PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED="${PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED:-true}"
# Leases in memory would leak the GPU slot when the server is started anew.
export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="${PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE:-prefect.server.concurrency.lease_storage.filesystem}"
# The first version of the pages: the second one calls a third party from the browser even with analytics off.
export PREFECT_SERVER_UI_V2_ENABLED="${PREFECT_SERVER_UI_V2_ENABLED:-false}"
export PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT="${PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT:-false}"
export PREFECT_SERVER_ANALYTICS_ENABLED="${PREFECT_SERVER_ANALYTICS_ENABLED:-false}"
export DO_NOT_TRACK="${DO_NOT_TRACK:-1}"
# A client's settings: the server must not take itself, or its pages, for another one.
unset PREFECT_API_URL PREFECT_API_KEY
exec "$python" -m prefect server start "--host=$host" "--port=$port" "$@"
