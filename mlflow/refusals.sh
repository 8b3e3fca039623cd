# What serve.sh and prefect.sh have in common: when a server is not started. Sourced, never run.
# A refusal is exit code 78 (EX_CONFIG) and a line that names the variable to set, never its value.

refuse() {
  printf 'mlflow/%s: %s\n' "${0##*/}" "$1" >&2
  exit 78
}

is_loopback() {
  [[ "$1" == 127.0.0.1 || "$1" == localhost || "$1" == ::1 ]]
}

require_python() {
  [[ -x "$(command -v "$1")" ]] || refuse "there is no $1; run make install, or set PYTHON"
}

require_password() { # NAME VALUE
  local name="$1" value="$2" rest="$2" distinct=0
  ((${#value} >= 12)) || refuse "$name is shorter than 12 characters"
  [[ "$value" != *[[:cntrl:]]* ]] || refuse "$name holds a line end or another control character"
  while [[ -n "$rest" ]]; do
    rest="${rest//"${rest:0:1}"/}"
    ((++distinct))
  done
  case "${value,,}" in
    *password* | *passw0rd* | *passwort* | *change?me* | *changeme* | *example* | *letmein* | *qwert* | *12345* | *admin* | *default*) distinct=0 ;;
  esac
  ((distinct >= 6)) || refuse "$name is a default, an example or easy to guess; this makes a good one: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
}

# Options on the command line win over those that were checked here.
forbid_options() { # SETTING=OPTIONS... -- ARGUMENTS
  local -a rules=()
  while [[ "$1" != -- ]]; do
    rules+=("$1")
    shift
  done
  shift
  local argument rule option
  for argument in "$@"; do
    for rule in "${rules[@]}"; do
      for option in ${rule#*=}; do
        [[ "${argument%%=*}" != "$option" && ! ("$option" == -? && "$argument" == "$option"*) ]] || refuse "set ${rule%%=*} instead of $option"
      done
    done
  done
}
