// Package bandwidth parses the annotations that limit the network bandwidth of a pod. It is
// pure: values in, values out, no I/O.
package bandwidth

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"
)

// Limits are the limits of a pod in bits per second; 0 is no limit.
type Limits struct{ Ingress, Egress int64 }

// Parse returns the limits in the annotations of a pod, which the API server does not
// validate. Errors are of kind InvalidArgument.
func Parse(annotations map[string]string) (limits Limits, err error) {
	for annotation, limit := range map[string]*int64{
		"kubernetes.io/ingress-bandwidth": &limits.Ingress,
		"kubernetes.io/egress-bandwidth":  &limits.Egress,
	} {
		text, ok := annotations[annotation]
		if !ok {
			continue
		}
		if *limit, ok = parseQuantity(text); !ok {
			return limits, fmt.Errorf("annotation %s %q: must be a quantity from 1k to 1P, in bits per second: %w", annotation, text, errdefs.ErrInvalidArgument)
		}
	}
	return limits, nil
}

// quantity is the grammar of resource.Quantity in k8s.io/apimachinery: a decimal number,
// and a binary or decimal suffix or an exponent.
var quantity = regexp.MustCompile(`^([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)|[eE]([+-]?[0-9]{1,3}))?$`)

// suffixes maps the suffixes of quantities to what they multiply by.
var suffixes = map[string]struct{ base, exponent int64 }{
	"": {10, 0}, "n": {10, -9}, "u": {10, -6}, "m": {10, -3},
	"k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
	"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
}

// The range of a bandwidth in bits per second, as in pkg/util/bandwidth of Kubernetes.
const (
	minBandwidth = 1e3
	maxBandwidth = 1e15
)

// parseQuantity parses a quantity of bits per second. Like resource.Quantity it rounds up.
func parseQuantity(text string) (int64, bool) {
	const maxLength = 64 // more than any quantity needs; bounds the work below
	parts := quantity.FindStringSubmatch(text)
	if parts == nil || len(text) > maxLength {
		return 0, false
	}
	value, ok := new(big.Rat).SetString(parts[1])
	if !ok {
		return 0, false
	}
	unit := suffixes[parts[2]]
	if parts[3] != "" {
		unit.exponent, _ = strconv.ParseInt(parts[3], 10, 64) // the grammar allows three digits
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
	bits, remainder := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if remainder.Sign() > 0 {
		bits.Add(bits, big.NewInt(1))
	}
	return bits.Int64(), true
}
