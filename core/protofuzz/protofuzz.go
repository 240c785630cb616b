// Package protofuzz fills protobuf messages with values that no kubelet sends: missing
// fields, numbers at the limits of their types, strings without a meaning or with another
// one. Only tests import it.
package protofuzz

import (
	"math"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	maxDepth    = 8 // of nested messages
	maxElements = 3 // of a list or map
	fieldsOf4   = 3 // that are set, of four fields
)

var (
	numbers = []int64{0, 1, 2, -1, 3, 80, 1000, 65535, 65536, 1 << 20, 6 << 20, 64 << 20, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64}
	texts   = []string{
		"", "a", "A_b", "..", "../../x", "a/../../b", ".", "x/y", "a:b:c:d:e", "\x00", "a\nb", "%s%d", "ä", "-1", "max", "2MB", "0-3,7", "memory.high",
		"localhost/", "localhost//none", "runtime/default", "CAP_CHOWN", "ALL", "rwm", strings.Repeat("long", 100),
	}
)

// Fill sets fields of m at random. Its strings are chosen from extra too, so that a message
// can name an object that exists.
func Fill(m proto.Message, random *rand.Rand, extra ...string) {
	f := filler{random, append(extra[:len(extra):len(extra)], texts...)}
	f.message(m.ProtoReflect(), 0)
}

type filler struct {
	*rand.Rand
	texts []string
}

func (s filler) message(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if s.IntN(fieldsOf4+1) == 0 || f.Message() != nil && depth >= maxDepth {
			continue
		}
		switch {
		case f.IsMap():
			for range s.IntN(maxElements + 1) {
				value := m.Mutable(f).Map().NewValue()
				m.Mutable(f).Map().Set(s.value(f.MapKey(), value, depth).MapKey(), s.value(f.MapValue(), value, depth))
			}
		case f.IsList():
			for range s.IntN(maxElements + 1) {
				list := m.Mutable(f).List()
				list.Append(s.value(f, list.NewElement(), depth))
			}
		default:
			m.Set(f, s.value(f, m.NewField(f), depth))
		}
	}
}

// value returns a value for f. A message is written to empty.
func (s filler) value(f protoreflect.FieldDescriptor, empty protoreflect.Value, depth int) protoreflect.Value {
	n := numbers[s.IntN(len(numbers))]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 0)
	case protoreflect.EnumKind:
		const limit = 70 // more values than any enum has
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(s.IntN(limit) * s.IntN(2) * s.IntN(2)))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(s.texts[s.IntN(len(s.texts))])
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(s.texts[s.IntN(len(s.texts))] + string([]byte{byte(n)})))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(n))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(n)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(uint32(n))
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(uint64(n))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(float64(n))
	case protoreflect.MessageKind:
		s.message(empty.Message(), depth+1)
		return empty
	default:
		return empty
	}
}
