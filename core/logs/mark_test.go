package logs

import "testing"

// What berth 1.0 has noted, a time and a number for both streams, is not written again.
func TestReplayOfOlderNotes(t *testing.T) {
	const then, now = "2026-11-23T14:26:30.000000001Z", "2026-11-23T14:26:30.000000002Z"
	at := position{Last: then, Count: 2}
	if got := at.since(false); got != then {
		t.Errorf("since %s", got)
	}
	r := at.replay()
	for i, tt := range []struct {
		message
		want bool
	}{
		{message{then, stdout, nil}, true}, {message{then, stderr, nil}, true}, {message{then, stdout, nil}, false},
		{message{now, stderr, nil}, false}, {message{now, stdout, nil}, false},
	} {
		if got := r.has(tt.message); got != tt.want {
			t.Errorf("%d: %v", i, got)
		}
	}
	if at.Last != "" || at.Stdout != (mark{then, 1}) || at.Stderr != (mark{then, 1}) {
		t.Errorf("%+v", at)
	}
}
