// Package protofuzz makes messages such as no kubelet sends: fields that are
// missing, numbers at the ends of what they can be, words that mean nothing or
// something else. Only tests import it.
package protofuzz

import (
	"math"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	deepest  = 8 // messages in messages
	longest  = 3 // elements of a list
	fillings = 3 // of four fields that are filled
)

var (
	numbers = []int64{0, 1, 2, -1, 3, 80, 1000, 65535, 65536, 1 << 20, 6 << 20, 64 << 20, math.MaxInt32, math.MinInt32, math.MaxInt64, math.MinInt64}
	texts   = []string{
		"", "a", "A_b", "..", "../../x", "a/../../b", ".", "x/y", "a:b:c:d:e", "\x00", "a\nb", "%s%d", "ä", "-1", "max", "2MB", "0-3,7", "memory.high",
		"localhost/", "localhost//none", "runtime/default", "CAP_CHOWN", "ALL", "rwm", strings.Repeat("long", 100),
	}
)

// Fill fills m at random. Among its words are those of words too, so that a
// message can be about something that is there.
func Fill(m proto.Message, random *rand.Rand, words ...string) {
	s := scrambler{random, append(words[:len(words):len(words)], texts...)}
	s.message(m.ProtoReflect(), 0)
}

type scrambler struct {
	*rand.Rand
	texts []string
}

func (s scrambler) message(m protoreflect.Message, depth int) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if s.IntN(fillings+1) == 0 || f.Message() != nil && depth >= deepest {
			continue
		}
		switch {
		case f.IsMap():
			for range s.IntN(longest + 1) {
				value := m.Mutable(f).Map().NewValue()
				m.Mutable(f).Map().Set(s.value(f.MapKey(), value, depth).MapKey(), s.value(f.MapValue(), value, depth))
			}
		case f.IsList():
			for range s.IntN(longest + 1) {
				list := m.Mutable(f).List()
				list.Append(s.value(f, list.NewElement(), depth))
			}
		default:
			m.Set(f, s.value(f, m.NewField(f), depth))
		}
	}
}

// value makes a value for f; empty is one, which counts if f is a message.
func (s scrambler) value(f protoreflect.FieldDescriptor, empty protoreflect.Value, depth int) protoreflect.Value {
	n := numbers[s.IntN(len(numbers))]
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(n%2 == 0)
	case protoreflect.EnumKind:
		const most = 70 // more than any enum has
		return protoreflect.ValueOfEnum(protoreflect.EnumNumber(s.IntN(most) * s.IntN(2) * s.IntN(2)))
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
