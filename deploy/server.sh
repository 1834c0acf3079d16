#!/usr/bin/env bash
# An MLflow tracking server on PostgreSQL, with artifacts handed out by the server itself.
#
#   deploy/server.sh                       # then, where sweeps run: export MLFLOW_TRACKING_URI=http://127.0.0.1:5000
#   HOST=0.0.0.0 deploy/server.sh          # for a network you trust: whoever reaches it reads and writes
#   HOST=0.0.0.0 deploy/server.sh --app-name basic-auth      # with users and passwords
#
# HOST, PORT  where it listens (default: 127.0.0.1, 5000)
# DATABASE    a PostgreSQL, as postgresql://USER:PASSWORD@HOST/NAME; without it the script keeps one of its own in
#             STATE/postgres, that runs as long as the server does and is reached by it alone
# STATE       the folder of that database and of the artifacts (default: ./server)
#
# Further arguments are those of `mlflow server`; `basic-auth` wants MLFLOW_AUTH_ADMIN_PASSWORD and
# MLFLOW_FLASK_SERVER_SECRET_KEY in the environment. Needs the extra `server`, and PostgreSQL for a database of its own.
set -euo pipefail

STATE=$(realpath --canonicalize-missing "${STATE:-server}")
mlflow=$(command -v mlflow) || { echo "error: no mlflow on the path: activate the virtual environment" >&2 && exit 1; }

main() {
    trap stop EXIT
    trap 'exit 143' TERM
    trap 'exit 130' INT
    mkdir -p "$STATE/artifacts"
    [ -n "${DATABASE:-}" ] || start_postgres
    cd "$STATE" # where MLflow keeps the users of basic-auth
    # its background jobs, ten processes, evaluate language models
    export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=${MLFLOW_SERVER_ENABLE_JOB_EXECUTION:-false}
    # by the environment, because a command line can be read by all users of the machine
    MLFLOW_BACKEND_STORE_URI=${DATABASE/#postgresql:/postgresql+psycopg2:} "$mlflow" server --artifacts-destination "$STATE/artifacts" \
        --host "${HOST:-127.0.0.1}" --port "${PORT:-5000}" "$@" &
    server=$!
    wait "$server"
}

stop() {
    [ -z "${server:-}" ] || { kill "$server" && wait "$server"; } 2>/dev/null || true
    [ -z "${sockets:-}" ] || { as_owner "$pg_ctl" --pgdata="$data" --silent --mode=fast stop && rm -rf "$sockets"; }
}

start_postgres() {
    initdb=$(postgres_program initdb) pg_ctl=$(postgres_program pg_ctl)
    [ -x "$pg_ctl" ] || { echo "error: there is no PostgreSQL: install it, or set DATABASE" >&2 && exit 1; }
    data=$STATE/postgres
    mkdir -p "$data"
    [ "$(id -u)" != 0 ] || chown postgres "$data"
    chmod 700 "$data"
    cd /
    as_owner test -r "$data" || { echo "error: the user postgres cannot enter $data: choose another STATE" >&2 && exit 1; }
    [ -e "$data/PG_VERSION" ] ||
        as_owner "$initdb" --pgdata="$data" --username=mlflow --auth=trust --encoding=UTF8 >/dev/null
    # nothing listens on the network: the server comes in by a socket in a folder that only its user can enter
    sockets=$(as_owner mktemp --directory)
    as_owner "$pg_ctl" --pgdata="$data" --wait --silent --log="$data/log" \
        --options="-c listen_addresses= -c unix_socket_directories=$sockets -c max_connections=200" start
    DATABASE="postgresql://mlflow@/postgres?host=$sockets"
}

postgres_program() {
    { command -v "$1" || find /usr/lib/postgresql -path "*/bin/$1" 2>/dev/null; } | sort --version-sort | tail -1
}

# PostgreSQL refuses to be run by root
as_owner() {
    if [ "$(id -u)" = 0 ]; then runuser --user postgres -- "$@"; else "$@"; fi
}

main "$@"
