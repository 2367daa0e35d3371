#!/bin/bash
# get.sh SUITE DEST PACKAGE...: unpacks packages of another Debian suite into DEST, without touching
# the system's sources. The mirror is the one apt uses already.
set -euo pipefail
suite=$1 dest=$(realpath -m "$2"); shift 2
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -1)
st=$dest/.apt; mkdir -p "$st/lists/partial" "$st/cache/archives/partial"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$st/list"
opts=(-q -o Dir::Etc::sourcelist="$st/list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$st/lists"
      -o Dir::Cache="$st/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root)
apt-get "${opts[@]}" update
(cd "$st" && apt-get "${opts[@]}" download "$@")
for d in "$st"/*.deb; do dpkg -x "$d" "$dest"; done
