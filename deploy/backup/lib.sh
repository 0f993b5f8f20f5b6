# shellcheck shell=bash
# What the scripts of this folder share: sourced, not run. Needs bash 4.4, GNU coreutils, awk, and redis-cli.
#
# How the server is reached, by variables; none of them ever stands on a command line that `ps` shows but host, port,
# socket, user and the paths of files:
#   REDIS_HOST, REDIS_PORT   127.0.0.1, 6379
#   REDIS_SOCKET             a unix socket, instead of both
#   REDIS_USER               an ACL user; without it the default user
#   REDIS_PASSWORD_FILE      a file whose first line is the password; REDISCLI_AUTH, redis-cli's own, does as well
#   REDIS_TLS                `yes` speaks TLS, with REDIS_CACERT, REDIS_CERT, REDIS_KEY (files) and REDIS_SNI (a name)
#   REDIS_TIMEOUT            10: seconds that one command may take
#   REDIS_CLI                redis-cli; valkey-cli does as well
#   REDIS_CHECK_RDB, REDIS_CHECK_AOF   the checkers, of the server's own version; empty: none

self=${0##*/}
cli=() target=() where=''  # `connect`: the words of every call, where to, and its name in messages
partial='' final='' made='' # `new_backup`: the folder until it is whole, and its name; when it was begun
umask 027 # a backup holds every payload

say() { printf '%s: %s\n' "$self" "$*"; }
warn() { printf '%s: %s\n' "$self" "$*" >&2; }

# die STATUS WORDS…: one line, and the end.
die() {
  local status=$1
  shift
  warn "$*"
  exit "$status"
}

# must WHY COMMAND…: run it; where it fails, one line says why, with its own last words.
must() {
  local why=$1 said
  shift
  said=$("$@" 2>&1) || die 1 "$why: $(last_of "$said")"
}

# Print the comment that the script begins with.
help() {
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"
  exit 0
}

# need_value OPTION COUNT: COUNT words are left of the command line, the option among them.
need_value() { [ "$2" -ge 2 ] || die 2 "$1 needs a value; see --help"; }

# number NAME VALUE: a variable must be a whole number from 1.
number() { [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die 2 "$1 is '$2': allowed is a whole number from 1"; }

readable() { [ -r "$2" ] || die 2 "$1 is '$2': there is no such file, or it may not be read"; }

# Read the variables above into `cli` (the words of each call) and `target` (where to).
connect() {
  command -v "${REDIS_CLI:=redis-cli}" >/dev/null || die 1 "$REDIS_CLI is not here: Debian has it in redis-tools"
  number REDIS_TIMEOUT "${REDIS_TIMEOUT:=10}"
  cli=("$REDIS_CLI" --no-auth-warning)
  [ -z "${REDIS_USER:-}" ] || cli+=(--user "$REDIS_USER")
  if [ -n "${REDIS_PASSWORD_FILE:-}" ]; then
    readable REDIS_PASSWORD_FILE "$REDIS_PASSWORD_FILE"
    REDISCLI_AUTH=
    IFS= read -r REDISCLI_AUTH <"$REDIS_PASSWORD_FILE" || [ -n "$REDISCLI_AUTH" ] ||
      die 2 "REDIS_PASSWORD_FILE is '$REDIS_PASSWORD_FILE': the file is empty"
    export REDISCLI_AUTH
  fi
  case ${REDIS_TLS:-no} in
    yes)
      cli+=(--tls)
      local name option
      for name in REDIS_CACERT REDIS_CERT REDIS_KEY; do
        [ -n "${!name:-}" ] || continue
        readable "$name" "${!name}"
        option=${name#REDIS_}
        cli+=("--${option,,}" "${!name}")
      done
      [ -z "${REDIS_SNI:-}" ] || cli+=(--sni "$REDIS_SNI")
      ;;
    no) ;;
    *) die 2 "REDIS_TLS is '$REDIS_TLS': allowed are yes and no" ;;
  esac
  if [ -n "${REDIS_SOCKET:-}" ]; then
    target=(-s "$REDIS_SOCKET") where=$REDIS_SOCKET
  else
    at "${REDIS_HOST:-127.0.0.1}" "${REDIS_PORT:-6379}"
  fi
}

# at HOST PORT: speak to another node from now on.
at() { target=(-h "$1" -p "$2") where=$1:$2; }

# last_of TEXT: its last line; redis-cli tries more than once, and repeats itself.
last_of() { printf '%s\n' "${1##*$'\n'}"; }

# Send one command and print its answer; without an answer, or with an error for one, that is the end.
# (redis-cli ends with 0 on an error reply: only its words tell.)
ask() {
  local answer
  answer=$(timeout "$REDIS_TIMEOUT" "${cli[@]}" "${target[@]}" "$@" 2>&1 </dev/null) ||
    die 1 "$where does not answer $1: $(last_of "${answer:-nothing came within $REDIS_TIMEOUT s}")"
  answer=${answer//$'\r'/}
  if [[ $answer =~ ^(\(error\) |AUTH\ failed|[A-Z]{2,}\ ) ]]; then die 1 "$where refuses $1: ${answer%%$'\n'*}"; fi
  printf '%s\n' "$answer"
}

# field NAME <INFO: the value of one line.
field() { awk -F: -v name="$1" '$1 == name { print substr($0, length(name) + 2); exit }'; }

# setting NAME DEFAULT: what CONFIG GET says, or the default where the server has no such setting.
setting() {
  local answer
  answer=$(ask CONFIG GET "$1")
  answer=$(sed -n 2p <<<"$answer")
  printf '%s\n' "${answer:-$2}"
}

# slots_of <line of CLUSTER NODES>: "0-5460,7000"; fails where slots are on the move.
slots_of() {
  awk '{ out = ""; for (i = 9; i <= NF; i++) { if ($i ~ /^\[/) exit 3; out = out (out ? "," : "") $i } print out }'
}

# address_of WORD: "host port" of "10.0.0.1:6379@16379,name" in a line of CLUSTER NODES or nodes.conf: the name where
# there is one, since TLS checks it.
address_of() {
  local name=${1#*,} host=${1%%@*}
  name=${name%%,*}
  [[ $1 == *,* && -n $name ]] || name=${host%:*}
  printf '%s %s\n' "$name" "${host##*:}"
}

# check_rdb FILE: print by what it was checked; a file that is not whole is the end.
check_rdb() {
  local tool said magic end
  magic=$(head -c 5 "$1" | tr -d '\0')
  case $magic in REDIS | VALKE) ;; *) die 1 "$1 is no RDB file: it begins with '$magic'" ;; esac
  # The last opcode, 255, and the checksum of 8 bytes: a stream that broke off lacks them.
  end=$(tail -c 9 "$1" | od -An -tu1 | awk '{ print $1; exit }')
  [ "$end" = 255 ] || die 1 "$1 is cut off: it lacks the end of an RDB file"
  tool=${REDIS_CHECK_RDB-$(command -v redis-check-rdb || command -v valkey-check-rdb || true)}
  if [ -z "$tool" ]; then
    echo "begin-and-end"
  elif said=$("$tool" "$1" 2>&1); then
    echo "${tool##*/}"
  elif [[ $said == *"handle RDB format version"* || ($magic == VALKE && $said == *"Wrong signature"*) ]]; then
    warn "$tool is older than the server and cannot read its files; only begin and end of ${1##*/} were checked"
    echo "begin-and-end"
  else
    die 1 "$1 is damaged: $(tail -n 1 <<<"$said")"
  fi
}

# new_backup DEST NAME: make the folder `partial`, which `publish` gives its name; whatever ends the script removes it.
new_backup() {
  must "$1 cannot be made" mkdir -p -- "$1"
  final=$1/$2
  partial=$1/.$2.partial
  [ ! -e "$final" ] || die 1 "$final is there already: two backups within a second"
  must "$partial cannot be made: a backup of the same second runs, or was killed" mkdir -- "$partial"
  trap 'rm -rf -- "$partial"' EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM
}

# Checksums over all files, everything on disk, and only then the name: a folder without the dot is a whole backup.
publish() {
  local sums
  sums=$(cd -- "$partial" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum --)
  printf '%s\n' "$sums" >"$partial/SHA256SUMS"
  must "$partial cannot be written to disk" find "$partial" -exec sync -- {} +
  must "$final cannot be given its name" mv -T -- "$partial" "$final"
  sync -- "${final%/*}" || true # some file systems sync no folder
  trap - EXIT
}

# describe KIND: the lines that every manifest begins with, from the node at hand. Needs `made`.
describe() {
  local info server
  info=$(ask INFO server)
  server="redis $(field redis_version <<<"$info")"
  [ -z "$(field valkey_version <<<"$info")" ] || server="valkey $(field valkey_version <<<"$info")"
  printf '%s\t%s\n' format 1 kind "$1" made "$made" server "$server" \
    appendonly "$(setting appendonly no)" dbfilename "$(setting dbfilename dump.rdb)" \
    appendfilename "$(setting appendfilename appendonly.aof)" appenddirname "$(setting appenddirname -)"
}

# manifest_says FOLDER KEY: one line of a backup's manifest.
manifest_says() { awk -F'\t' -v key="$2" '$1 == key { print $2; exit }' "$1/manifest"; }
