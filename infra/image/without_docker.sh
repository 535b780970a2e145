#!/usr/bin/env bash
# What the image's build does, without Docker: in an empty environment the same wheel, constraints and requirements in
# the same order, then its own check and the demo, as the image's user, with its variables, with nothing but /tmp to
# write to and without a network. For machines that have no Docker, and CI. It has to be root, on Linux.
#   infra/image/without_docker.sh [cpu|cuda]
set -euo pipefail
cd "$(dirname "$0")/../.."
torch=${1:-cpu}
work=$(mktemp -d "${IMAGE_DIR:-/opt}/xlmr-ray-image.XXXXXX")    # not in /tmp, which is another one below
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
python=${PYTHON:-python3}

# FROM base AS wheel
mkdir "$work/source" "$work/wheel"
cp -r pyproject.toml README.md LICENSE xlmr_ray "$work/source/"
(cd "$work/source" && "$python" -m pip wheel --quiet --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir "$work/wheel" .)

# FROM base
"$python" -m venv "$work/usr"
pip() { "$work/usr/bin/python" -m pip "$@" --quiet --disable-pip-version-check; }
pip install --no-deps --constraint constraints.txt torch
"$work/usr/bin/python" infra/image/requirements.py pyproject.toml "$torch" > "$work/requirements.txt"
pip install --constraint constraints.txt --requirement "$work/requirements.txt"
pip install --no-deps "$work"/wheel/*.whl
pip check
cp -r xlmr_ray/assets/udhr "$work/udhr"
du -sh "$work/usr" | cut -f1 | sed 's/$/ in the environment/'

# docker run --rm --network none --read-only --tmpfs /tmp --cap-drop ALL … demo
bare=(--bounding-set=-all --inh-caps=-all --ambient-caps=-all --no-new-privs)
user=(--reuid 10001 --regid 10001 --clear-groups)
if ! setpriv "${user[@]}" "${bare[@]}" sh -c '"$0" -c ""' "$work/usr/bin/python" 2> /dev/null; then
  echo "as root without capabilities: user 10001 may not read this machine's $python"
  user=()
fi
mapfile -t variables < <(sed -n '/^ENV HOME/,/[^\\]$/p' infra/image/Dockerfile | sed 's/^ENV //; s/\\$//' | xargs -n1)
unshare --net --mount --fork --kill-child bash -euc '
  ip link set lo up
  mount -t tmpfs -o mode=1777 tmpfs /tmp
  mount -o remount,bind,ro /
  cd /tmp
  exec env --ignore-environment PATH="$0/usr/bin:/usr/local/bin:/usr/bin:/bin" "$@"
' "$work" "${variables[@]}" setpriv "${user[@]}" "${bare[@]}" \
  sh -euc '
    if touch /written 2> /dev/null || touch "$0/written" 2> /dev/null; then echo "the root is not read-only"; exit 1; fi
    xlmr-ray demo
    xlmr-ray verify demo-output
  ' "$work"
