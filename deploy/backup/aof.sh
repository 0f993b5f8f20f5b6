#!/usr/bin/env bash
# aof.sh: a consistent copy of a server's append-only files, while it runs or after it has died.
#
# Usage: aof.sh [--data-dir DIR] DEST
#
# DEST gets a folder, aof-<UTC time>[-<node>], with appendonlydir/ (Redis 7.0+, Valkey: manifest, base, increments) or
# appendonly.aof (Redis 6.2), `manifest`, `nodes` and SHA256SUMS, as snapshot.sh makes them; whole when it has its name.
# In a cluster, run it on the machine of each primary.
#
# How it stays consistent, without touching the server: files of an AOF only ever grow at their end, and a rewrite makes
# new files and then a new list. So each file of the list is hard-linked, in milliseconds, and the links are copied. Did
# the list change meanwhile, a rewrite has begun or ended: again. (Redis's manual turns automatic rewrites off meanwhile;
# a script that dies then leaves them off, and a rewrite by hand still interferes.) Where the server's disk cannot be
# written to, files are copied in place, by the same rule.
# The last increment may end within a command. Redis drops that one when it loads (aof-load-truncated yes, its default).
#
#   --data-dir DIR   the server's `dir` as seen from here; without it the server is asked, and must answer. With it the
#                    server may be dead: names are then those of the variables below
#
# Variables: those of lib.sh (REDIS_HOST, REDIS_PORT, REDIS_SOCKET, REDIS_USER, REDIS_PASSWORD_FILE, REDIS_TLS …), and
#   AOF_DIRNAME    appendonlydir: appenddirname of redis.conf; only used with --data-dir
#   AOF_FILENAME   appendonly.aof: appendfilename of redis.conf; only used with --data-dir
#
# Exit status: 0 made (the folder's path is the last line), 1 not made, and nothing is left; 2 wrong usage.
set -euo pipefail
# shellcheck source=deploy/backup/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TRIES=20

data_dir='' dest=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help ;;
    --data-dir) need_value "$1" $# && data_dir=$2 && shift ;;
    -*) die 2 "$1 is no option; see --help" ;;
    *) [ -z "$dest" ] || die 2 "one DEST is allowed, got '$dest' and '$1'" && dest=$1 ;;
  esac
  shift
done
[ -n "$dest" ] || die 2 "DEST is missing: the folder that holds the backups; see --help"

# list: the names of the AOF's files, relative to the data folder, the list itself last.
list() {
  if [ -f "$data_dir/$dirname/$filename.manifest" ]; then
    # file <name> seq <n> type b|i|h: `h` is history, which the server is about to delete. Names with blanks are quoted.
    awk -v dir="$dirname" '$1 == "file" && $NF != "h" { name = $2; gsub(/"/, "", name); print dir "/" name }' \
      "$data_dir/$dirname/$filename.manifest"
    printf '%s\n' "$dirname/$filename.manifest"
  elif [ -f "$data_dir/$filename" ]; then
    printf '%s\n' "$filename"
  fi
}

# What must not change between the first link and the last.
state() { if [ -f "$data_dir/$dirname/$filename.manifest" ]; then cat -- "$data_dir/$dirname/$filename.manifest"; fi; }

# gather FOLDER COMMAND…: link or copy every file of the list, by COMMAND; 1 when the list has changed meanwhile.
gather() {
  local folder=$1 before name
  shift
  before=$(state) || return 1
  while IFS= read -r name; do
    mkdir -p -- "$folder/$(dirname -- "$name")"
    "$@" "$data_dir/$name" "$folder/$name" 2>/dev/null || return 1 # a rewrite has deleted it
  done < <(list)
  [ "$before" = "$(state)" ]
}

# check_aof: print by what the files of the copy were checked. What follows the last whole command may be cut off, not
# wrong. A file at a time, the base as an RDB: given the list, the checker of Valkey 9.1 refuses every base of its own.
check_aof() {
  local tool=${REDIS_CHECK_AOF-$(command -v redis-check-aof || command -v valkey-check-aof || true)}
  local files file said by=${tool##*/} is_cut=''
  mapfile -t files < <(list | grep -v '\.manifest$')
  for file in "${files[@]}"; do
    file=$partial/$file
    if [[ $file == *.base.rdb ]]; then
      by+=${by:+,}$(check_rdb "$file")
    elif [ -n "$tool" ] && [ -s "$file" ] && ! said=$("$tool" "$file" 2>&1 </dev/null); then
      # Of another file than the last, a part is missing; and no cut makes a wrong word.
      if [[ $said == *"handle RDB format version"* ]]; then
        warn "$tool is older than the server and cannot read ${file##*/}: it was not checked"
      elif [ "$file" = "$partial/${files[-1]}" ] && [[ ! $said =~ format\ error|Expected\ (prefix|.r.n)|RDB\ ERROR ]]; then
        is_cut=,last-command-cut
      else
        die 1 "${file##*/} is damaged: $(tail -n 1 <<<"$said")"
      fi
    fi
  done
  printf '%s\n' "${by:-nothing}$is_cut"
}

made=$(date -u +%Y-%m-%dT%H:%M:%SZ)
name=aof-$(date -u -d "$made" +%Y%m%dT%H%M%SZ)
node=- slots=- is_up=no
if [ -z "$data_dir" ]; then
  connect
  ask PING >/dev/null
  is_up=yes
  [ "$(setting appendonly yes)" = yes ] || die 1 "$where runs with appendonly off: its files, if there are any, are old"
  data_dir=$(setting dir .)
  dirname=$(setting appenddirname -) filename=$(setting appendfilename appendonly.aof)
else
  dirname=${AOF_DIRNAME:-appendonlydir} filename=${AOF_FILENAME:-appendonly.aof}
fi
[ -d "$data_dir" ] || die 1 "$data_dir is not to be seen here: run it beside the server, or give --data-dir"
[ -n "$(list)" ] || die 1 "$data_dir has no $dirname/$filename.manifest and no $filename: is appendonly on?"
nodes=$(cat -- "$data_dir/nodes.conf" 2>/dev/null || true)
if [ -n "$nodes" ]; then
  myself=$(grep -w myself <<<"$nodes") || die 1 "$data_dir/nodes.conf names no node as myself"
  [[ $myself == *master* ]] || die 1 "$data_dir is a replica's, and may lag: copy its primary's"
  slots=$(slots_of <<<"$myself") || die 1 "slots of ${myself%% *} are moving: wait for the end of the resharding"
  node=${myself%% *} name+=-${node:0:8}
fi

new_backup "$dest" "$name"
links=
if mkdir "$data_dir/.aof-backup-$$" 2>/dev/null; then
  links=$data_dir/.aof-backup-$$
  trap 'rm -rf -- "$partial" "$links"' EXIT
fi
for ((try = 1; ; try++)); do
  if [ -n "$links" ] && gather "$links" ln --; then
    must "the links in $links cannot be copied to $partial" cp -R -- "$links/." "$partial/"
    break
  elif [ -z "$links" ] && gather "$partial" cp --; then
    break
  fi
  [ "$try" -lt "$TRIES" ] || die 1 "the AOF in $data_dir was being rewritten at each of $TRIES tries, or may not be read"
  find "${links:-$partial}" -mindepth 1 -delete
  sleep 0.2
done
[ -z "$links" ] || rm -rf -- "$links"
# What is copied, not the server's own, is looked at from now on.
data_dir=$partial
# Group and others have no business in it, whatever the server's files allow.
chmod -R u=rwX,g=rX,o= -- "$partial"

checked=$(check_aof)
if [ "$is_up" = yes ]; then
  describe aof >"$partial/manifest"
else
  printf '%s\t%s\n' format 1 kind aof made "$made" server unknown appendonly yes dbfilename dump.rdb \
    appendfilename "$filename" appenddirname "$dirname" >"$partial/manifest"
fi
[ -z "$nodes" ] || printf '%s\n' "$nodes" >"$partial/nodes"
list | while IFS= read -r file; do
  printf 'file\t%s\t%s\t%s\t%s\t%s\t%s\n' "$file" "$node" "$slots" "${where:--}" "$(date +%s)" "$checked"
done >>"$partial/manifest"
publish
say "$(du -sb -- "$final" | cut -f 1) bytes, checked by $checked"
printf '%s\n' "$final"
