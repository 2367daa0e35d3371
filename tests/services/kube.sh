#!/bin/bash
# kube.sh DEST: builds a real kube-apiserver into DEST/kube-apiserver from Debian's source package of
# bookworm (some five CPU minutes, once); nothing is fetched but that source and one more package.
# Needs golang-go, dpkg-dev and openssl. Safe to run again: a server that is there is left alone.
set -euo pipefail
dest=$(realpath -m "$1")
[ -x "$dest/kube-apiserver" ] && exit 0

orig=b83c0780efb182d928dc63d46488a847f161f04e40a94b96bf5247dd671ecdfc
work=$dest.new
rm -rf "$work"
mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial" "$work/gopath/src/k8s.io"
trap 'chmod -R u+w "$work" 2>/dev/null; rm -rf "$work"' EXIT

mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' | head -1)
printf 'deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm main\n' "$mirror" >"$work/apt/list"
printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm main\n' "$mirror" >>"$work/apt/list"
opts=(-q -o Dir::Etc::sourcelist="$work/apt/list" -o Dir::Etc::sourceparts=- -o Dir::State::lists="$work/apt/lists"
    -o Dir::Cache="$work/apt/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root)
cd "$work"
apt-get "${opts[@]}" update
apt-get "${opts[@]}" source --download-only kubernetes
apt-get "${opts[@]}" download golang-github-modern-go-reflect2-dev
echo "$orig  $(echo kubernetes_*.orig.tar.gz)" | sha256sum -c -

tree=$work/gopath/src/k8s.io/kubernetes
dpkg-source --no-check -x kubernetes_*.dsc "$tree"
# The vendored reflect2 1.0.1 is older than the change of Go 1.18 to maps: with it the server starts,
# and panics in nearly every request once a Service exists. 1.0.2, which Debian has, is not.
dpkg -x golang-github-modern-go-reflect2-dev_*.deb reflect2
vendored=$tree/vendor/github.com/modern-go/reflect2
rm -f "$vendored"/*.go "$vendored"/*.s
cp reflect2/usr/share/gocode/src/github.com/modern-go/reflect2/* "$vendored/"
rm -f "$vendored"/*_test.go

cd "$tree"
export GOPATH=$work/gopath GO111MODULE=off CGO_ENABLED=0 GOFLAGS='' GOCACHE=$work/gocache
go build -o "$work/openapi-gen" k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen
# The one generated file that the source package lacks.
dirs=$(grep -rl --include='*.go' '+k8s:openapi-gen=' cmd pkg plugin staging/src/k8s.io |
    grep -vE '/(code-generator|sample-apiserver)/' | xargs -n1 dirname | sort -u |
    sed 's#^staging/src/#vendor/#; s#^#k8s.io/kubernetes/#' | paste -sd,)
mkdir -p pkg/generated/openapi
"$work/openapi-gen" -v 0 --logtostderr -i "$dirs" -p k8s.io/kubernetes/pkg/generated/openapi -O zz_generated.openapi \
    -h hack/boilerplate/boilerplate.generatego.txt -r "$work/violations.txt"
go build -ldflags '-s -w' -o "$work/kube-apiserver" k8s.io/kubernetes/cmd/kube-apiserver

mkdir -p "$dest"
chmod 0755 "$work/kube-apiserver" "$dest"
mv "$work/kube-apiserver" "$dest/kube-apiserver"
