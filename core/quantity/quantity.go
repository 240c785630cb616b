// Package quantity parses quantities as Kubernetes writes them, such as 64Mi and 1e9.
package quantity

import (
	"math/big"
	"regexp"
	"strconv"
	"sync"
)

// grammar is the grammar of resource.Quantity in k8s.io/apimachinery: a decimal number,
// and a binary or decimal suffix or an exponent.
var grammar = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))(?:(Ki|Mi|Gi|Ti|Pi|Ei|n|u|m|k|M|G|T|P|E)|[eE]([+-]?[0-9]{1,3}))?$`)
})

// suffixes maps the suffixes of quantities to what they multiply by.
var suffixes = map[string]struct{ base, exponent int64 }{
	"": {10, 0}, "n": {10, -9}, "u": {10, -6}, "m": {10, -3},
	"k": {10, 3}, "M": {10, 6}, "G": {10, 9}, "T": {10, 12}, "P": {10, 15}, "E": {10, 18},
	"Ki": {2, 10}, "Mi": {2, 20}, "Gi": {2, 30}, "Ti": {2, 40}, "Pi": {2, 50}, "Ei": {2, 60},
}

// Parse parses a quantity that must be between lowest and highest. Like resource.Quantity it
// rounds up to a whole number.
func Parse(text string, lowest, highest int64) (int64, bool) {
	const maxLength = 64 // more than any quantity needs; bounds the work below
	parts := grammar().FindStringSubmatch(text)
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
	if value.Cmp(big.NewRat(lowest, 1)) < 0 || value.Cmp(big.NewRat(highest, 1)) > 0 {
		return 0, false
	}
	whole, remainder := new(big.Int).QuoRem(value.Num(), value.Denom(), new(big.Int))
	if remainder.Sign() > 0 {
		whole.Add(whole, big.NewInt(1))
	}
	return whole.Int64(), true
}
