package todocker

import (
	"math/big"
	"regexp"
	"strconv"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Bandwidth are the limits of a pod's network in bits per second, 0 for none.
type Bandwidth struct{ Ingress, Egress int64 }

// PodBandwidth reads the annotations that limit the bandwidth of a pod; of kind
// InvalidArgument if one is no quantity or beyond what can be meant. The API server does not
// check them. For a pod in the node's network there is nothing to limit.
func PodBandwidth(pod *runtimeapi.PodSandboxConfig) (b Bandwidth, err error) {
	if HostNetwork(pod) {
		return b, nil
	}
	for annotation, limit := range map[string]*int64{
		"kubernetes.io/ingress-bandwidth": &b.Ingress,
		"kubernetes.io/egress-bandwidth":  &b.Egress,
	} {
		text, ok := pod.GetAnnotations()[annotation]
		if !ok {
			continue
		}
		if *limit, ok = bandwidth(text); !ok {
			return b, invalid("annotation %s %q: must be a quantity from 1k to 1P, in bits per second", annotation, text)
		}
	}
	return b, nil
}

// quantity is the grammar of resource.Quantity in k8s.io/apimachinery: a decimal number
// and a suffix of powers of 2 or of 10, or an exponent.
var quantity = regexp.MustCompile(`^([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)|[eE]([+-]?[0-9]{1,3}))?$`)

// suffixes are what the suffixes of a quantity stand for, but for exponents.
var suffixes = map[string]struct{ base, exponent int64 }{
	"": {10, 0}, "n": {10, -9}, "u": {10, -6}, "m": {10, -3},
	"k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
	"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
}

// Bounds of a bandwidth, as in the kubelet's pkg/util/bandwidth.
const (
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// bandwidth reads a quantity of bits per second, rounded up as resource.Quantity is.
func bandwidth(text string) (int64, bool) {
	const longest = 64
	parts := quantity.FindStringSubmatch(text)
	if parts == nil || len(text) > longest {
		return 0, false
	}
	value, ok := new(big.Rat).SetString(parts[1])
	if !ok {
		return 0, false
	}
	unit := suffixes[parts[2]]
	if parts[3] != "" {
		unit.exponent, _ = strconv.ParseInt(parts[3], 10, 64) // the grammar has three digits
	}
	power := new(big.Int).Exp(big.NewInt(unit.base), big.NewInt(max(unit.exponent, -unit.exponent)), nil)
	factor := new(big.Rat).SetInt(power)
	if unit.exponent < 0 {
		factor.Inv(factor)
	}
	value.Mul(value, factor)
	if value.Cmp(big.NewRat(minBandwidth, 1)) < 0 || value.Cmp(big.NewRat(maxBandwidth, 1)) > 0 {
		return 0, false
	}
	whole, rest := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	return whole.Int64(), true
}
