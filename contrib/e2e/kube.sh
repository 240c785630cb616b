#!/usr/bin/env bash
# kube.sh: builds Kubernetes and etcd from their Go modules into the cache, for
# the tests with a real kubelet. This takes 15 minutes the first time. With
# "conformance" it also builds the node specs and agnhost, the program of the image
# that they use; with "dns" CoreDNS. With KUBE=VERSION it builds only the programs that
# cluster.sh runs, of that release; etcd is the same.
. "$(dirname "$0")/lib.sh"
etcd=3.7.3 coredns=1.14.6
out=$kube_dir programs='kubelet kube-apiserver kubectl'
versions="kubernetes $kube_version"
if [ "$out" = "$cache/kube" ]; then
	programs+=' kubeadm kube-controller-manager kube-scheduler kube-proxy'
	versions+=", etcd $etcd"
else
	[ -z "${1:-}" ] || die "$1: can only be built for the default Kubernetes release, without KUBE"
	KUBE='' "$0"
fi

specs() {
	[ "$(cat "$out/.specs" 2>/dev/null)" != "$versions" ] || return 0
	say "building the specs of kubernetes $kube_version"
	mkdir -p "$out/src/specs"
	cd "$out/src/specs"
	cp "$out/src/kube/go.mod" .
	[ ! -e "$out/src/kube/go.sum" ] || cp "$out/src/kube/go.sum" .
	cat >specs_test.go <<-'E'
		package specs

		import (
			"flag"
			"os"
			"testing"

			"k8s.io/kubernetes/test/e2e"
			_ "k8s.io/kubernetes/test/e2e/common/node"
			"k8s.io/kubernetes/test/e2e/framework"
			"k8s.io/kubernetes/test/e2e/framework/config"
			_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
			_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
			_ "k8s.io/kubernetes/test/e2e/framework/node/init"
			"k8s.io/kubernetes/test/e2e/framework/testfiles"
			_ "k8s.io/kubernetes/test/e2e/node"
			manifests "k8s.io/kubernetes/test/e2e/testing-manifests"
		)

		func TestMain(m *testing.M) {
			config.CopyFlags(config.Flags, flag.CommandLine)
			framework.RegisterCommonFlags(flag.CommandLine)
			framework.RegisterClusterFlags(flag.CommandLine)
			flag.Parse()
			testfiles.AddFileSource(manifests.GetE2ETestingManifestsFS())
			framework.AfterReadingAllFlags(&framework.TestContext)
			os.Exit(m.Run())
		}

		func TestSpecs(t *testing.T) { e2e.RunE2ETests(t) }
	E
	CGO_ENABLED=0 go test -c -mod=mod -ldflags '-s -w' -o "$out/e2e.test" .
	CGO_ENABLED=0 go build -mod=mod -ldflags '-s -w' -o "$out/agnhost" k8s.io/kubernetes/test/images/agnhost
	CGO_ENABLED=0 go build -mod=mod -ldflags '-s -w' -o "$out/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
	echo "$versions" >"$out/.specs"
}

# dns builds CoreDNS with the plugins that kubeadm's configuration uses.
dns() {
	[ "$(cat "$out/.dns" 2>/dev/null)" != "$coredns" ] || return 0
	say "building CoreDNS $coredns"
	mkdir -p "$out/src/dns"
	cd "$out/src/dns"
	printf 'module dns\n\ngo 1.26.0\n\nrequire github.com/coredns/coredns v%s\n' "$coredns" >go.mod
	{
		printf 'package main\n\nimport (\n\t"github.com/coredns/coredns/coremain"\n'
		for plugin in cache errors forward health kubernetes loadbalance loop metrics ready reload; do
			printf '\t_ "github.com/coredns/coredns/plugin/%s"\n' "$plugin"
		done
		printf ')\n\nfunc main() { coremain.Run() }\n'
	} >main.go
	CGO_ENABLED=0 go build -mod=mod -ldflags '-s -w' -o "$out/coredns" .
	echo "$coredns" >"$out/.dns"
}

also() {
	case ${1:-} in
	conformance) specs ;;
	dns) dns ;;
	esac
}
if [ "$(cat "$out/.complete" 2>/dev/null)" = "$versions" ]; then
	also "$@"
	exit 0
fi
say "building $versions into $out"
mkdir -p "$out/src/kube" "$out/src/etcd"
cd "$out/src/kube"
# Kubernetes' own modules require each other as v0.0.0.
dir=$(go mod download -json "k8s.io/kubernetes@v$kube_version" | sed -n 's/.*"Dir": "\(.*\)".*/\1/p')
[ -n "$dir" ] || die "kubernetes $kube_version cannot be downloaded"
{
	# The go directive determines GODEBUG defaults, that is how the standard library behaves.
	printf 'module kube\n\n%s\n\nrequire k8s.io/kubernetes v%s\n\nreplace (\n' "$(grep '^go ' "$dir/go.mod")" "$kube_version"
	sed -n "s|^\s*\(k8s.io/[a-z-]*\) v0\.0\.0$|\t\1 => \1 v0.${kube_version#*.}|p" "$dir/go.mod" | sort -u
	printf ')\n'
} >go.mod
case $kube_version in
1.31.14) go mod edit -replace k8s.io/kube-scheduler=k8s.io/kube-scheduler@v0.31.13 ;; # the module proxy does not have v0.31.14
esac
v=k8s.io/component-base/version
for c in $programs; do
	CGO_ENABLED=0 go build -mod=mod -ldflags "-s -w -X $v.gitVersion=v$kube_version -X $v.gitMajor=1 -X $v.gitMinor=$kube_minor -X k8s.io/client-go/pkg/version.gitVersion=v$kube_version" \
		-o "$out/" "k8s.io/kubernetes/cmd/$c"
done
if [ "$out" != "$cache/kube" ]; then
	echo "$versions" >"$out/.complete"
	exit 0
fi
cd "$out/src/etcd"
printf 'module etcd\n\ngo 1.26.0\n\nrequire go.etcd.io/etcd/server/v3 v%s\n' "$etcd" >go.mod
cat >main.go <<'E'
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
E
CGO_ENABLED=0 go build -mod=mod -ldflags '-s -w' -o "$out/etcd" .
echo "$versions" >"$out/.complete"
also "$@"
