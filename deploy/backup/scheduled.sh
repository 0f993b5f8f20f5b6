#!/usr/bin/env bash
# scheduled.sh: one backup and then the end of old ones, for cron, a systemd timer or a CronJob.
#
# Usage: scheduled.sh [--aof] [options of snapshot.sh] DEST
#
#   --aof   copies the AOF as well (aof.sh, with the same --data-dir)
#
# Old is what was made more than KEEP_DAYS days ago, by the time in its name: a copy elsewhere keeps its age. It deletes
# only after the new backup is whole, only folders named as ours are, never the newest of a kind (of each node), and says
# what it deleted. What a killed run has left goes after a day. Two runs with one DEST do not overlap: the later waits for
# LOCK_SECONDS.
#
#   cron:     17 3 * * *  redis  REDIS_PASSWORD_FILE=/etc/redis/backup.password /opt/uno/backup/scheduled.sh /backup
#   systemd:  deploy/backup/uno-backup.service and .timer
#
# Variables: those of snapshot.sh and lib.sh, and
#   KEEP_DAYS      7
#   LOCK_SECONDS   600
#
# Exit status: 0 made; 1 not made (then nothing was deleted), or something could not be deleted; 2 wrong usage.
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=deploy/backup/lib.sh
. "$folder/lib.sh"

with_aof=no dest='' options=() data_dir=()
while [ $# -gt 0 ]; do
  case $1 in
    --help | -h) help ;;
    --aof) with_aof=yes ;;
    --data-dir) need_value "$1" $# && data_dir=("$1" "$2") && shift ;;
    -*) options+=("$1") ;;
    *) [ -z "$dest" ] || die 2 "one DEST is allowed, got '$dest' and '$1'" && dest=$1 ;;
  esac
  shift
done
[ -n "$dest" ] || die 2 "DEST is missing: the folder that holds the backups; see --help"
number KEEP_DAYS "${KEEP_DAYS:=7}"
number LOCK_SECONDS "${LOCK_SECONDS:=600}"

must "$dest cannot be made" mkdir -p -- "$dest"
exec 9>"$dest/.lock"
flock -w "$LOCK_SECONDS" 9 || die 1 "another backup to $dest has been running for $LOCK_SECONDS s"

"$folder/snapshot.sh" "${options[@]}" "${data_dir[@]}" "$dest" 9>&-
if [ "$with_aof" = yes ]; then
  "$folder/aof.sh" "${data_dir[@]}" "$dest" 9>&-
fi

# newest first: <kind and node> <stamp> <name>
list() {
  find "$dest" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' |
    sed -nE 's/^(rdb|aof)-([0-9]{8}T[0-9]{6}Z)(-[0-9a-f]{8})?$/\1\3 \2 &/p' | sort -k 1,1 -k 2,2r
}
oldest=$(date -u -d "$KEEP_DAYS days ago" +%Y%m%dT%H%M%SZ)
failed=0 before=''
while read -r kind stamp name; do
  if [ "$kind" = "$before" ] && [[ $stamp < $oldest ]]; then
    if rm -rf -- "${dest:?}/$name"; then say "deleted $name: older than $KEEP_DAYS days"; else failed=1; fi
  fi
  before=$kind
done < <(list)
while IFS= read -r -d '' part; do
  if rm -rf -- "$part"; then say "deleted ${part##*/}: left by a run that was killed"; else failed=1; fi
done < <(find "$dest" -mindepth 1 -maxdepth 1 -type d -name '.*.partial' -mmin +1440 -print0)
exit "$failed"
