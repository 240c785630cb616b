package pullprogress

import (
	"testing"

	"github.com/docker/docker/pkg/jsonmessage"
)

func TestAwaitingRegistry(t *testing.T) {
	at := func(id, status string, current, total int64) jsonmessage.JSONMessage {
		return jsonmessage.JSONMessage{ID: id, Status: status, Progress: &jsonmessage.JSONProgress{Current: current, Total: total}}
	}
	var layers layers
	if !layers.awaitingRegistry() {
		t.Error("not awaiting the registry before the first message")
	}
	for _, tt := range []struct {
		m                 jsonmessage.JSONMessage
		changed, awaiting bool
	}{
		{jsonmessage.JSONMessage{ID: "1", Status: "Pulling from library/a"}, true, true},
		{at("a", "Already exists", 0, 0), true, true},
		{at("b", "Pulling fs layer", 0, 0), true, true},
		{at("c", "Pulling fs layer", 0, 0), true, true},
		{at("c", "Waiting", 0, 0), true, true},
		{at("b", "Downloading", 5, 10), true, true},
		{at("b", "Downloading", 5, 10), false, true},
		{at("b", "Retrying in 5 seconds", 0, 0), true, true},
		{at("b", "Retrying in 1 second", 0, 0), true, true},
		{at("b", "Downloading", 10, 10), true, false},
		{at("b", "Download complete", 0, 0), true, false},
		{at("c", "Downloading", 1, 0), true, true},
		{at("c", "Downloading", 2, 0), true, true},
		{at("b", "Extracting", 1, 10), true, false},
		{at("c", "Downloading", 2, 0), false, false},
		{at("c", "Downloading", 3, 0), true, false},
		{at("b", "Pull complete", 0, 0), true, true},
		{at("c", "Verifying Checksum", 0, 0), true, false},
		{at("c", "Extracting", 1, 0), true, false},
		{at("c", "Pull complete", 0, 0), true, true},
		{jsonmessage.JSONMessage{Status: "Digest: sha256:d"}, true, true},
		{jsonmessage.JSONMessage{ID: "d", Status: "a status of a newer Docker"}, true, true},
	} {
		if changed, awaiting := layers.update(tt.m), layers.awaitingRegistry(); changed != tt.changed || awaiting != tt.awaiting {
			t.Errorf("%s %s %+v: changed %v, awaiting registry %v; want %v, %v", tt.m.ID, tt.m.Status, tt.m.Progress, changed, awaiting, tt.changed, tt.awaiting)
		}
	}
}
