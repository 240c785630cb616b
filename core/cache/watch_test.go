package cache

import (
	"fmt"
	"strings"
	"testing"
)

func TestDiffOfTwoInspects(t *testing.T) {
	for name, tt := range map[string]struct {
		before *timestamps
		now    timestamps
		want   string
	}{
		"created":                         {nil, timestamps{1, 0, 0}, "CREATED@1"},
		"created and started":             {nil, timestamps{1, 2, 0}, "CREATED@1 STARTED@2"},
		"created, started and stopped":    {nil, timestamps{1, 2, 3}, "CREATED@1 STARTED@2 STOPPED@3"},
		"started":                         {&timestamps{1, 0, 0}, timestamps{1, 2, 0}, "STARTED@2"},
		"started and stopped":             {&timestamps{1, 0, 0}, timestamps{1, 2, 3}, "STARTED@2 STOPPED@3"},
		"could not be started":            {&timestamps{1, 0, 0}, timestamps{1, 0, 3}, "STOPPED@3"},
		"stopped":                         {&timestamps{1, 2, 0}, timestamps{1, 2, 3}, "STOPPED@3"},
		"no change":                       {&timestamps{1, 2, 3}, timestamps{1, 2, 3}, ""},
		"still running":                   {&timestamps{1, 2, 0}, timestamps{1, 2, 0}, ""},
		"started again":                   {&timestamps{1, 2, 3}, timestamps{1, 4, 0}, "STARTED@4"},
		"restarted without its stop seen": {&timestamps{1, 2, 0}, timestamps{1, 4, 0}, "STOPPED@0 STARTED@4"},
		"started again and stopped":       {&timestamps{1, 2, 3}, timestamps{1, 4, 5}, "STARTED@4 STOPPED@5"},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, m := range diff(tt.before, tt.now) {
				kind := strings.TrimSuffix(strings.TrimPrefix(m.kind.String(), "CONTAINER_"), "_EVENT")
				got = append(got, fmt.Sprintf("%s@%d", kind, m.at))
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %q, want %q", s, tt.want)
			}
		})
	}
}
