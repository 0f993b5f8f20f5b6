#!/usr/bin/env bash
# restore.sh: put a backup of snapshot.sh or aof.sh into the data folder of a server that is stopped.
#
# Usage: restore.sh --data-dir DIR [--slots SLOTS] [--owner USER:GROUP] [--appendonly yes|no] BACKUP
#        restore.sh --data-dir DIR --replica
#
# BACKUP is a folder rdb-… or aof-…. What is in DIR is never deleted: it goes to DIR/before-restore-<UTC time>.
#
# The trap that this is for: with `appendonly yes` a server loads its AOF and never looks at dump.rdb. A dump.rdb copied
# into place, as in the guide, is ignored, and then overwritten: Redis 7+ and Valkey start with the old AOF, or EMPTY
# without one. So a snapshot becomes dump.rdb and the base of a new AOF, and the server has it whichever it loads.
#
# A cluster: stop replicas first, then primaries; run this for each primary, with --replica for each replica; start the
# primaries; and when CLUSTER INFO says cluster_state:ok, the replicas. A replica that still runs is elected within the
# node timeout, and the restored primary then takes over the old letters: hence this refuses while one answers.
# The file is chosen by the slots that DIR/nodes.conf says the node serves; nodes.conf itself stays as it is, in the same
# nodes as in new ones. A backup has no use for an old one: it would bring back ids and epochs that nobody knows any more.
#
#   --data-dir DIR       `dir` of the server's redis.conf
#   --slots SLOTS        which file of a cluster's backup, as its manifest names the slots, where there is no nodes.conf
#   --owner USER:GROUP   of the files; else that of DIR
#   --appendonly no      makes no AOF: only for a server that is certain to run without. AOF backups need `yes`
#   --unreachable-is-down   nodes whose machine gives no sign are off, and stay off until the primary serves
#   --replica            takes nothing from a backup: moves the data aside, so that the replica syncs from its primary
#
# Variables: those of lib.sh (REDIS_HOST, REDIS_PORT, REDIS_SOCKET, REDIS_PASSWORD_FILE, REDIS_TLS …): where the server
# answers when it runs, which it must not; and for --replica, where redis.conf names them otherwise,
#   DB_FILENAME, AOF_FILENAME, AOF_DIRNAME   dump.rdb, appendonly.aof, appendonlydir
#
# Exit status: 0 in place, the server may start; 1 refused, and DIR is as it was; 2 wrong usage.
set -euo pipefail
# shellcheck source=deploy/backup/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

unreachable=up said=''
data_dir='' wanted='' owner='' appendonly=yes is_replica=no backup=''
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help ;;
    --data-dir) need_value "$1" $# && data_dir=$2 && shift ;;
    --slots) need_value "$1" $# && wanted=$2 && shift ;;
    --owner) need_value "$1" $# && owner=$2 && shift ;;
    --appendonly) need_value "$1" $# && appendonly=$2 && shift ;;
    --replica) is_replica=yes ;;
    --unreachable-is-down) unreachable=down ;;
    -*) die 2 "$1 is no option; see --help" ;;
    *) [ -z "$backup" ] || die 2 "one BACKUP is allowed, got '$backup' and '$1'" && backup=${1%/} ;;
  esac
  shift
done
[ -d "$data_dir" ] || die 2 "--data-dir is '$data_dir': there is no such folder"
[[ $appendonly == yes || $appendonly == no ]] || die 2 "--appendonly is '$appendonly': allowed are yes and no"
if [ "$is_replica" = yes ]; then
  [ -z "$backup" ] || die 2 "--replica takes no BACKUP: a replica has its letters from its primary"
else
  [ -n "$backup" ] || die 2 "BACKUP is missing: a folder that snapshot.sh or aof.sh made; see --help"
  [ -f "$backup/manifest" ] || die 1 "$backup has no manifest: it is no backup, or not a whole one"
fi

# is_down: nobody listens at the node at hand. A server that hangs, wants a password or another certificate, is not down;
# one whose machine gives no sign may be either.
is_down() {
  said=$(timeout "$REDIS_TIMEOUT" "${cli[@]}" "${target[@]}" PING 2>&1 </dev/null) || true
  said=$(last_of "$said")
  case $said in
    *"Connection refused" | *"No such file or directory" | *"Name or service not known") return 0 ;;
    "" | *"No route to host" | *"timed out") [ "$unreachable" = down ] ;;
    *) return 1 ;;
  esac
}

# A server's working directory is its data folder, whatever its port.
server_in_folder() {
  local process name
  for process in /proc/[0-9]*; do
    [ "$process/cwd" -ef "$data_dir" ] || continue
    name=$(cat "$process/comm" 2>/dev/null) || continue
    [[ $name != *redis* && $name != *valkey* ]] || printf '%s, process %s\n' "$name" "${process##*/}"
  done
}

# Whoever could win over the restored node must not run: its replicas, and whoever has its slots by now.
check_rivals() {
  local id address flags primary host port line
  while read -r id address flags primary _; do
    [[ $flags == *myself* || $flags == *noaddr* || $id == vars ]] && continue
    read -r host port < <(address_of "$address")
    at "$host" "$port"
    is_down && continue
    [ "$primary" != "$my_id" ] ||
      die 1 "its replica $where still runs (${said:-no answer}), and would take over with the letters of now: stop it first"
    [ -n "$said" ] || die 1 "$where gives no answer: give --unreachable-is-down when its machine is off"
    said=$(ask CLUSTER NODES) || die 1 "$where runs, but does not say who serves the slots: see above"
    line=$(grep "^$my_id " <<<"$said") || die 1 "$where does not know this node any more: nodes.conf is not of this cluster"
    [[ $line == *master* && $(slots_of <<<"$line") == "$my_slots" ]] ||
      die 1 "$where says that this node does not serve $my_slots any more: another has taken over, restore that one"
  done <<<"$nodes"
}

connect
is_down || die 1 "a server is at $where (${said:-hangs}): stop it first, since it would write over what is restored"
running=$(server_in_folder)
[ -z "$running" ] || die 1 "a server runs in $data_dir (${running%%$'\n'*}): stop it first"

nodes=$(cat -- "$data_dir/nodes.conf" 2>/dev/null || true)
my_id='' my_slots=''
if [ -n "$nodes" ]; then
  myself=$(grep -w myself <<<"$nodes") || die 1 "$data_dir/nodes.conf names no node as myself"
  my_id=${myself%% *}
  if [ "$is_replica" = no ]; then
    [[ $myself == *master* ]] || die 1 "$data_dir is a replica's: use --replica, and restore its primary"
    my_slots=$(slots_of <<<"$myself") || die 1 "slots of $my_id are moving: finish that on the cluster first"
    check_rivals
  fi
fi

if [ "$is_replica" = no ]; then
  (cd -- "$backup" && sha256sum --quiet --strict -c SHA256SUMS >/dev/null 2>&1) ||
    die 1 "$backup is damaged, or not whole: see sha256sum -c SHA256SUMS there"
  kind=$(manifest_says "$backup" kind)
  [[ $kind == rdb || $kind == aof ]] || die 1 "$backup/manifest says kind '$kind': known are rdb and aof"
  [ "$kind" = rdb ] || [ "$appendonly" = yes ] || die 2 "$backup is an AOF: a server without appendonly would start empty"
  slots=${wanted:-$my_slots}
  [ -z "$wanted" ] || [ -z "$my_slots" ] || [ "$wanted" = "$my_slots" ] ||
    die 1 "the node serves $my_slots, not --slots $wanted"
  known=$(awk -F'\t' '$1 == "file" { print $4 }' "$backup/manifest" | sort -u | paste -sd ' ')
  if [ "$known" = - ]; then
    [ -z "$slots" ] || die 1 "$backup is of a server alone; the node serves slots $slots: use \`redis-cli --cluster import\`"
    slots=-
  fi
  [ -n "$slots" ] || die 1 "$data_dir has no nodes.conf: name the slots with --slots, out of: $known"
  mapfile -t files < <(awk -F'\t' -v slots="$slots" '$1 == "file" && $4 == slots { print $2 }' "$backup/manifest")
  [ "${#files[@]}" -gt 0 ] || die 1 "the node serves slots $slots; $backup has: $known. They must be the same"
  dbfilename=$(manifest_says "$backup" dbfilename)
  filename=$(manifest_says "$backup" appendfilename) dirname=$(manifest_says "$backup" appenddirname)
else
  dbfilename=${DB_FILENAME:-dump.rdb} filename=${AOF_FILENAME:-appendonly.aof} dirname=${AOF_DIRNAME:-appendonlydir}
fi

# -- from here on DIR changes: first all that can fail -------------------------------------------------------------

stamp=$(date -u +%Y%m%dT%H%M%SZ)
new=$data_dir/.restore-$stamp aside=$data_dir/before-restore-$stamp
must "$new cannot be made" mkdir -- "$new"
trap 'rm -rf -- "$new"' EXIT

if [ "$is_replica" = no ]; then
  for file in "${files[@]}"; do
    to=$file
    [ "$kind" = aof ] || to=$dbfilename
    mkdir -p -- "$new/$(dirname -- "$to")"
    must "$file cannot be copied to $new" cp -- "$backup/$file" "$new/$to"
    cmp -s -- "$backup/$file" "$new/$to" || die 1 "$file is not the same after the copy: the disk of $data_dir is at fault"
  done
  if [ "$kind" = rdb ] && [ "$appendonly" = yes ]; then
    if [ "$dirname" = - ]; then
      # Redis 6.2: an AOF may begin with a whole RDB, also one that nothing follows. It grows: no link.
      must "no room for $filename in $data_dir" cp -- "$new/$dbfilename" "$new/$filename"
    else
      # A base never grows, and is replaced like dump.rdb by another file: they may share their bytes.
      mkdir -- "$new/$dirname"
      base=$filename.1.base.rdb
      ln -- "$new/$dbfilename" "$new/$dirname/$base" 2>/dev/null ||
        must "no room for $base in $data_dir" cp -- "$new/$dbfilename" "$new/$dirname/$base"
      printf 'file %s seq 1 type b\n' "$base" >"$new/$dirname/$filename.manifest"
    fi
  fi
  chmod -R u=rwX,g=rX,o= -- "$new"
  owner=${owner:-$(stat -c %u:%g -- "$data_dir")}
  must "the files cannot be given to $owner: run it as root" chown -R -- "$owner" "$new"
  must "$new cannot be written to disk" find "$new" -exec sync -- {} +
fi

# Also what a backup of Redis 6.2 has no name for: a later server would load it, and not the single file.
for name in "$dbfilename" "$filename" "$dirname" "${AOF_DIRNAME:-appendonlydir}"; do
  [ -e "$data_dir/$name" ] || continue
  mkdir -p -- "$aside"
  must "$data_dir/$name cannot be moved to $aside" mv -- "$data_dir/$name" "$aside/"
done
for path in "$new"/*; do
  [ ! -e "$path" ] ||
    must "$path cannot be moved to $data_dir; what was there is in $aside" mv -- "$path" "$data_dir/"
done
sync -- "$data_dir" || true # some file systems sync no folder

[ ! -d "$aside" ] || say "what was there is in $aside: delete it when all is well"
if [ "$is_replica" = yes ]; then
  say "$data_dir is empty: start it when its primary serves"
else
  say "$data_dir has $(manifest_says "$backup" made) of $kind, slots $slots: start the server, then uno dead-letter verify"
fi
