#!/usr/bin/env bash
# Starts one command on every worker of a Cloud TPU slice. Run it again after a preemption, with the
# same --workdir: the run goes on from its last checkpoint.
#
#   configs/tpu_pod.sh NAME ZONE --workdir=/mnt/shared/run --config=configs/plays.py ...
#
# NAME and ZONE are those of the slice; --workdir is an absolute path in a file system that all
# workers share (Filestore, or a bucket mounted with gcsfuse), and so is a text of your own. The
# workers find each other by --coordinator=auto. This folder, without .git and runs, takes the place
# of ~/jaxlm on each of them.
set -euo pipefail
if [[ $# -lt 3 || " $* " != *" --workdir=/"* ]]; then
  echo "usage: $0 NAME ZONE --workdir=/SHARED/FOLDER [flags of launch.py]" >&2
  exit 2
fi
name=$1 zone=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
on_all=(--zone="$zone" --worker=all)
packed=$(mktemp -d)
trap 'rm -rf "$packed"' EXIT

tar -czf "$packed/jaxlm.tgz" -C "$root" --exclude=./.git --exclude=./runs --exclude=./.venv \
  --exclude=__pycache__ --exclude='*.egg-info' .
gcloud compute tpus tpu-vm scp "${on_all[@]}" "$packed/jaxlm.tgz" "$name":jaxlm.tgz
gcloud compute tpus tpu-vm ssh "$name" "${on_all[@]}" --command="
  set -e; rm -rf jaxlm; mkdir jaxlm; tar -xzf jaxlm.tgz -C jaxlm; cd jaxlm
  pip install -q -e '.[tpu]'; python3 launch.py --coordinator=auto$(printf ' %q' "$@")"
