#!/usr/bin/env bash
# snapshot.sh: an RDB snapshot of a live server, or of every primary of a cluster, made by forked children.
#
# Usage: snapshot.sh [--data-dir DIR] DEST     BGSAVE of one server, and a copy of its file
#        snapshot.sh --stream DEST             the same over the network (redis-cli --rdb): needs no file access
#        snapshot.sh --cluster DEST            --stream of every primary of the cluster that the server belongs to
#
# DEST gets a folder, rdb-<UTC time>[-<node>], with dump[-<slots>-<node>].rdb, `manifest` (server, AOF settings, node,
# slots, how each file was checked), `nodes` (CLUSTER NODES, of a cluster) and SHA256SUMS. It has its name only when it
# is whole and on disk; until then it is `.….partial`. It holds payloads: mode 750, files 640.
#
# Never SAVE, as in the guide: that blocks the server until the file is written, and all its clients with it. BGSAVE
# forks; writes go on, at the price of the pages they change (memory up to twice, usually a few per cent).
# On a cluster without --cluster, run it on the machine of each primary. A replica is refused: it may lag.
# The primaries' snapshots are not of one moment. They need not be: a shard, with all that belongs to a letter, lies in
# one slot. Slots that are just moving are refused, since a key could be in neither file.
#
#   --data-dir DIR   where the server's `dir` is seen from here, as in a container; else what CONFIG GET dir says
#
# Variables: those of lib.sh (REDIS_HOST, REDIS_PORT, REDIS_SOCKET, REDIS_USER, REDIS_PASSWORD_FILE, REDIS_TLS …), and
#   SNAPSHOT_TIMEOUT   600: seconds until the snapshot of one server must be done
# An ACL user needs +ping +info +config|get +bgsave +lastsave +time +cluster, and for --stream +sync +psync +replconf.
#
# Exit status: 0 made (the folder's path is the last line), 1 not made, and nothing is left; 2 wrong usage.
set -euo pipefail
# shellcheck source=deploy/backup/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

way=copy data_dir='' dest=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help ;;
    --stream) [ "$way" = cluster ] || way=stream ;;
    --cluster) way=cluster ;;
    --data-dir) need_value "$1" $# && data_dir=$2 && shift ;;
    -*) die 2 "$1 is no option; see --help" ;;
    *) [ -z "$dest" ] || die 2 "one DEST is allowed, got '$dest' and '$1'" && dest=$1 ;;
  esac
  shift
done
[ -n "$dest" ] || die 2 "DEST is missing: the folder that holds the backups; see --help"
number SNAPSHOT_TIMEOUT "${SNAPSHOT_TIMEOUT:=600}"

# LASTSAVE counts seconds: only from the next one on does a change of it prove a save.
leave_second() {
  local now
  before=$(ask LASTSAVE)
  while now=$(ask TIME) || exit 1; [ "${now%%$'\n'*}" -le "$before" ]; do sleep 0.1; done
}

# Start a BGSAVE of our own and wait for its end. One that runs already is waited for, not taken: it began earlier.
save_in_background() {
  local deadline=$((SECONDS + SNAPSHOT_TIMEOUT)) before answer info
  leave_second
  while :; do
    answer=$(timeout "$REDIS_TIMEOUT" "${cli[@]}" "${target[@]}" BGSAVE 2>&1 </dev/null) || answer="no answer"
    case $answer in
      *"saving started"*) break ;;
      *"in progress"* | *rewriting* | *"active child"* | *"can't BGSAVE right now"*)
        # Another child of the server: a save, an AOF rewrite, a replica's synchronisation.
        [ "$SECONDS" -lt "$deadline" ] || die 1 "$where has been busy for $SNAPSHOT_TIMEOUT s: $answer"
        sleep 0.2
        ;;
      *) die 1 "$where refuses BGSAVE: $answer" ;;
    esac
    leave_second
  done
  while info=$(ask INFO persistence) || exit 1; [ "$(field rdb_bgsave_in_progress <<<"$info")" != 0 ]; do
    [ "$SECONDS" -lt "$deadline" ] || die 1 "BGSAVE of $where is not done after $SNAPSHOT_TIMEOUT s; it goes on there"
    sleep 0.1
  done
  saved=$(ask LASTSAVE)
  if [ "$(field rdb_last_bgsave_status <<<"$info")" != ok ] || [ "$saved" -le "$before" ]; then
    die 1 "BGSAVE of $where has failed: see the server's log (disk full, or no memory to fork)"
  fi
}

# copy_out FILE: the server renames each dump into its place, so an open file stays the one that it was.
copy_out() {
  local folder=${data_dir:-$(setting dir .)} source
  save_in_background
  source=$folder/$(setting dbfilename dump.rdb)
  [ -r "$source" ] || die 1 "$source is not to be read here: run it beside the server, give --data-dir, or use --stream"
  # A folder of another server would give an older file, silently.
  [ "$(stat -c %Y -- "$source")" -ge $((saved - 2)) ] || die 1 "$source is older than this save: not the folder of $where"
  must "$source cannot be copied to $1" cp -- "$source" "$1"
}

# stream_out FILE: what a replica gets. redis-cli writes it in place and may leave a part: hence `partial`, the exit
# status, and check_rdb.
stream_out() {
  local said
  said=$(timeout "$SNAPSHOT_TIMEOUT" "${cli[@]}" "${target[@]}" --rdb "$1" 2>&1 </dev/null) ||
    die 1 "$where gives no snapshot within $SNAPSHOT_TIMEOUT s: $(tail -n 1 <<<"${said:-no answer}")"
  [ -s "$1" ] || die 1 "$where gives no snapshot: $(tail -n 1 <<<"${said:-no answer}")"
  saved=$(ask TIME)
  saved=${saved%%$'\n'*}
}

# short_slots SLOTS: for a file's name; the manifest has them all.
short_slots() { awk -F, '{ print (NF > 2) ? $1 "+" NF - 1 : $0 }' <<<"$1" | tr ',' '_'; }

# take_one NODE SLOTS: the snapshot of the node at hand, both words `-` for a server alone.
take_one() {
  local name=dump checked began=$SECONDS
  [ "$1" = - ] || name+=-$(short_slots "$2")-${1:0:8}
  if [ "$way" = copy ]; then copy_out "$partial/$name.rdb"; else stream_out "$partial/$name.rdb"; fi
  checked=$(check_rdb "$partial/$name.rdb")
  printf 'file\t%s\t%s\t%s\t%s\t%s\t%s\n' "$name.rdb" "$1" "$2" "$where" "$saved" "$checked" >>"$partial/manifest"
  say "$where: $(stat -c %s -- "$partial/$name.rdb") bytes in $((SECONDS - began)) s, checked by $checked"
}

# own_slots ID: what the node at hand says that it serves, and that none of it is moving: only a slot's two nodes know.
own_slots() {
  local line
  line=$(ask CLUSTER NODES | grep -w myself)
  [ "${line%% *}" = "$1" ] || die 1 "$where is node ${line%% *}, not $1: the address is another's"
  slots_of <<<"$line" || die 1 "slots of $where are moving: wait for the end of the resharding"
}

# take_settled ID: the snapshot of the node at hand, whose slots were its own before it and after.
take_settled() {
  local slots after
  slots=$(own_slots "$1")
  [ -n "$slots" ] || die 1 "$where serves no slots: there is nothing to save"
  take_one "$1" "$slots"
  after=$(own_slots "$1")
  [ "$slots" = "$after" ] || die 1 "slots of $where have changed meanwhile: run it again"
}

connect
ask PING >/dev/null
made=$(date -u +%Y-%m-%dT%H:%M:%SZ)
stamp=$(date -u -d "$made" +%Y%m%dT%H%M%SZ)
is_cluster=$(ask INFO cluster | field cluster_enabled)
role=$(ask INFO replication | field role)

if [ "$is_cluster" != 1 ]; then
  [ "$way" != cluster ] || die 1 "$where is not a node of a cluster: leave --cluster out"
  [ "$role" = master ] || die 1 "$where is a replica, and may lag: ask its primary"
  new_backup "$dest" "rdb-$stamp"
  describe rdb >"$partial/manifest"
  take_one - -
else
  nodes=$(ask CLUSTER NODES)
  myself=$(grep -w myself <<<"$nodes")
  if [ "$way" != cluster ]; then
    [ "$role" = master ] || die 1 "$where is a replica, and may lag: ask its primary"
    new_backup "$dest" "rdb-$stamp-${myself:0:8}"
    describe rdb >"$partial/manifest"
    printf '%s\n' "$nodes" >"$partial/nodes"
    take_settled "${myself%% *}"
  else
    [ "$(ask CLUSTER INFO | field cluster_slots_ok)" = 16384 ] || die 1 "not all slots are served: $where says so"
    new_backup "$dest" "rdb-$stamp"
    describe rdb >"$partial/manifest"
    printf '%s\n' "$nodes" >"$partial/nodes"
    while read -r line; do
      read -r id address flags _ <<<"$line"
      [[ ,$flags, == *,master,* && ,$flags, != *,fail,* ]] || continue
      [ -n "$(awk '{ print $9 }' <<<"$line")" ] || continue # serves no slots
      read -r host port < <(address_of "$address")
      at "$host" "$port"
      take_settled "$id"
    done <<<"$nodes"
    connect
    # Slots that went over to another node meanwhile, by failover or resharding, may be in two files or in none.
    owners() { awk '$3 ~ /master/ && NF > 8 { $2 = $3 = $4 = $5 = $6 = $7 = $8 = ""; print }' | sort; }
    [ "$(owners <<<"$nodes")" = "$(ask CLUSTER NODES | owners)" ] || die 1 "slots changed their node meanwhile: run it again"
  fi
fi
publish
say "done"
printf '%s\n' "$final"
