package logstream

import (
	"testing"

	"berth/core/logs/dockerlog"
)

// The position that berth 1.0 stores is a time and a count for both streams together.
func TestReplayContainsEntriesCountedByOlderVersion(t *testing.T) {
	const before, after = "2026-11-23T14:26:30.000000001Z", "2026-11-23T14:26:30.000000002Z"
	pos := Position{LastTime: before, LastCount: 2}
	if got := pos.Since(false); got != before {
		t.Errorf("since %s", got)
	}
	replay := pos.Replay()
	for i, tt := range []struct {
		stamp, stream string
		want          bool
	}{
		{before, dockerlog.Stdout, true}, {before, dockerlog.Stderr, true}, {before, dockerlog.Stdout, false},
		{after, dockerlog.Stderr, false}, {after, dockerlog.Stdout, false},
	} {
		if got := replay.Contains(dockerlog.Entry{Time: []byte(tt.stamp), Stream: tt.stream}); got != tt.want {
			t.Errorf("entry %d: contained is %v, want %v", i, got, tt.want)
		}
	}
	if pos.LastTime != "" || pos.Stdout != (Mark{before, 1}) || pos.Stderr != (Mark{before, 1}) {
		t.Errorf("position %+v, want one entry of %s in each stream", pos, before)
	}
}
