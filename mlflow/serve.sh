#!/usr/bin/env bash
# MLflow's tracking server on the store that runs write to.
#
#   mlflow/serve.sh                                    this machine only, no password: http://127.0.0.1:5000
#   MLFLOW_HOST=0.0.0.0 ... mlflow/serve.sh            for a team; refuses to start without a password (see ../docs/servers.md)
#
# MLFLOW_HOST, MLFLOW_PORT         where it listens (127.0.0.1, 5000)
# MLFLOW_BACKEND_STORE_URI         the database (SQLite in POSTTRAIN_HOME, or in output/)
# MLFLOW_ARTIFACTS_DESTINATION     where files of runs are kept (a folder beside it)
# MLFLOW_AUTH_ADMIN_PASSWORD       of the user `admin`, at the first start; once it is set, nobody comes in without a password
# MLFLOW_FLASK_SERVER_SECRET_KEY   random, the same at every start; needed with passwords
# MLFLOW_ALLOWED_HOSTS             names under which browsers and runs reach it, comma-separated; needed beyond this machine
# Further options are passed on to `mlflow server`.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=mlflow/refusals.sh
source "$root/mlflow/refusals.sh"
store="${POSTTRAIN_HOME:-$root/output}/mlflow"
host="${MLFLOW_HOST:-127.0.0.1}"
port="${MLFLOW_PORT:-5000}"
python="${PYTHON:-$root/.venv/bin/python}"
options=("--host=$host" "--port=$port" --serve-artifacts)

require_python "$python"
forbid_options "MLFLOW_HOST=--host -h" "MLFLOW_PORT=--port -p" "MLFLOW_ALLOWED_HOSTS=--allowed-hosts --disable-security-middleware" \
  "MLFLOW_AUTH_ADMIN_PASSWORD=--app-name" "MLFLOW_HOST=--uvicorn-opts --gunicorn-opts --waitress-opts --dev" -- "$@"

if ! is_loopback "$host"; then
  [[ -n "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" ]] || refuse "MLFLOW_HOST can be reached by others: set MLFLOW_AUTH_ADMIN_PASSWORD"
  [[ -n "${MLFLOW_ALLOWED_HOSTS:-}" ]] || refuse "set MLFLOW_ALLOWED_HOSTS to the names of this server, e.g. mlflow.example.org:5000"
fi
if [[ -n "${MLFLOW_AUTH_ADMIN_PASSWORD:-}" ]]; then
  require_password MLFLOW_AUTH_ADMIN_PASSWORD "$MLFLOW_AUTH_ADMIN_PASSWORD"
  [[ -n "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" ]] || refuse "set MLFLOW_FLASK_SERVER_SECRET_KEY to a random text, the same at every start"
  require_password MLFLOW_FLASK_SERVER_SECRET_KEY "$MLFLOW_FLASK_SERVER_SECRET_KEY"
  "$python" -c 'import flask_wtf' 2>/dev/null || refuse "passwords need the extra packages: .venv/bin/pip install -c constraints.txt -e '.[team]'"
  options+=(--app-name basic-auth)
fi
[[ -z "${MLFLOW_ALLOWED_HOSTS:-}" ]] || options+=("--allowed-hosts=$MLFLOW_ALLOWED_HOSTS")

mkdir -p "$store/artifacts"
cd "$store" # where the database of users and passwords is kept, basic_auth.db
# By the environment and not as options: a database's URL may hold a password, and everybody can list a machine's processes.
export MLFLOW_BACKEND_STORE_URI="${MLFLOW_BACKEND_STORE_URI:-sqlite:///$store/mlflow.db}"
export MLFLOW_ARTIFACTS_DESTINATION="${MLFLOW_ARTIFACTS_DESTINATION:-$store/artifacts}"
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}"
# What would undo the above, or reach `mlflow server` a second time.
unset MLFLOW_HOST MLFLOW_PORT MLFLOW_TRACKING_URI MLFLOW_SERVER_ALLOWED_HOSTS MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE \
  MLFLOW_UVICORN_OPTS MLFLOW_GUNICORN_OPTS
exec "$python" -m mlflow server "${options[@]}" "$@"
