#!/usr/bin/env bash
# MLflow's tracking server on the store that runs write to.
#
#   mlflow/serve.sh                                    this machine only, no password: http://127.0.0.1:5000
#   MLFLOW_HOST=0.0.0.0 ... mlflow/serve.sh            for a team; refuses to start without a password (see README.md here)
#
# MLFLOW_HOST, MLFLOW_PORT      where it listens (127.0.0.1, 5000)
# MLFLOW_BACKEND_STORE_URI      the database (SQLite in POSTTRAIN_HOME, or in output/)
# MLFLOW_ALLOWED_HOSTS          names under which browsers and runs reach it, comma-separated; needed beyond this machine
# Further options are passed on to `mlflow server`.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
store="${POSTTRAIN_HOME:-$root/output}/mlflow"
host="${MLFLOW_HOST:-127.0.0.1}"
port="${MLFLOW_PORT:-5000}"
# Taken from the environment, these would reach `mlflow server` a second time.
unset MLFLOW_HOST MLFLOW_PORT MLFLOW_TRACKING_URI
python="${PYTHON:-$root/.venv/bin/python}"
options=(--host "$host" --port "$port" --backend-store-uri "${MLFLOW_BACKEND_STORE_URI:-sqlite:///$store/mlflow.db}"
  --serve-artifacts --artifacts-destination "$store/artifacts")

refuse() {
  echo "mlflow/serve.sh: $1" >&2
  exit 78
}

[[ -x "$(command -v "$python")" ]] || refuse "there is no $python; run make install, or set PYTHON"

case "$host" in
  127.0.0.1 | localhost | ::1) ;;
  *)
    [[ -n "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" ]] || refuse "$host can be reached by others: set MLFLOW_AUTH_ADMIN_PASSWORD"
    [[ ${#MLFLOW_AUTH_ADMIN_PASSWORD} -ge 12 ]] || refuse "MLFLOW_AUTH_ADMIN_PASSWORD is shorter than 12 characters"
    [[ -n "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" ]] || refuse "set MLFLOW_FLASK_SERVER_SECRET_KEY to a random text, the same at every start"
    [[ -n "${MLFLOW_ALLOWED_HOSTS:-}" ]] || refuse "set MLFLOW_ALLOWED_HOSTS to the names of this server, e.g. mlflow.example.org:$port"
    "$python" -c 'import flask_wtf' 2>/dev/null || refuse "passwords need the extra packages: .venv/bin/pip install -e '.[auth]'"
    options+=(--app-name basic-auth --allowed-hosts "$MLFLOW_ALLOWED_HOSTS")
    ;;
esac

mkdir -p "$store/artifacts"
cd "$store" # where the database of users and passwords is kept, basic_auth.db
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"
exec "$python" -m mlflow server "${options[@]}" "$@"
