#!/usr/bin/env bash
# Builds the image where no Docker daemon and no registry is, out of the same Dockerfile: by Debian's buildah, on a base
# that debootstrap makes in the place of python:3.11-slim-bookworm. Then runs the demo in what was built, as the image's
# user, read-only, without capabilities and without a network. For CI; it has to be root, on Linux.
#   apt-get install --no-install-recommends buildah debootstrap crun
#   infra/image/without_daemon.sh [cpu|cuda] [more arguments of `buildah build`: --build-arg TORCH_INDEX=…, --volume …]
set -euo pipefail
cd "$(dirname "$0")/../.."
torch=${1:-cpu}
shift || true
work=$(mktemp -d "${IMAGE_DIR:-/opt}/xlmr-ray-image.XXXXXX")    # not in /tmp, which is another one below
b() { buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs "$@"; }
container=
cleanup() { [ -z "$container" ] || b rm "$container" > /dev/null; b rmi --all --force > /dev/null || true; rm -rf "$work"; }
trap cleanup EXIT

# The base: Debian's Python 3.11 under the names that the official image has.
debootstrap --variant=minbase --include=python3-pip,ca-certificates bookworm "$work/base" > "$work/debootstrap.log" \
  || { tail "$work/debootstrap.log"; exit 1; }
ln -s /usr/bin/python3 "$work/base/usr/local/bin/python"
ln -s /usr/bin/pip3 "$work/base/usr/local/bin/pip"
rm -f "$work/base"/usr/lib/python3.11/EXTERNALLY-MANAGED
container=$(b from scratch)
b add --quiet "$container" "$work/base" / > /dev/null
b config --env PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
b commit --quiet --rm "$container" localhost/python:3.11 > /dev/null
container=
rm -rf "$work/base"

b build --isolation chroot --layers=false --quiet --tag localhost/xlmr-ray "$@" \
  --build-arg BASE=localhost/python:3.11 --build-arg TORCH="$torch" --file infra/image/Dockerfile . > /dev/null
container=$(b from localhost/xlmr-ray)
root=$(b mount "$container")
du -sh "$root" | cut -f1 | sed 's/$/ in the image/'
b inspect --type image --format '{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}}' localhost/xlmr-ray
mapfile -t variables < <(b inspect --type image --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' localhost/xlmr-ray | sed '/^$/d')

# docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL … demo
unshare --net --mount --pid --fork --kill-child bash -euc '
  root=$0
  ip link set lo up
  mount --bind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  mount -o remount,bind,ro "$root"
  cd "$root"
  exec env --ignore-environment "$@"
' "$root" "${variables[@]}" chroot "$root" \
  setpriv --reuid 10001 --regid 10001 --clear-groups --bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs \
  sh -euc '
    cd /tmp
    if touch /written 2> /dev/null; then echo "the root is not read-only"; exit 1; fi
    id
    xlmr-ray --version
    xlmr-ray demo
    xlmr-ray verify demo-output
  '
