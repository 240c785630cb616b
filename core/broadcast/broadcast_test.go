package broadcast_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"berth/core/broadcast"
)

// A subscriber that does not read must not block the sender, nor grow without bounds.
func TestSlowSubscriberLosesTheOldestMessages(t *testing.T) {
	t.Parallel()
	var b broadcast.Broadcaster[int]
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reading, read, lost, last := make(chan bool), 0, 0, 0
	done := make(chan error)
	go func() {
		done <- b.Subscribe(ctx, func(message int) error {
			if read == 0 {
				reading <- true
				<-reading
			}
			last = message
			if read++; read == 1+broadcast.MaxPending {
				cancel()
			}
			return nil
		}, func(n int) { lost += n })
	}()
	for !b.HasSubscribers() {
		time.Sleep(time.Millisecond)
	}
	b.Send(0)
	<-reading
	for i := range 3 * broadcast.MaxPending {
		b.Send(1 + i)
	}
	reading <- true
	if err := <-done; !errors.Is(err, context.Canceled) || read != 1+broadcast.MaxPending {
		t.Errorf("received %d messages, %v", read, err)
	}
	if lost != 2*broadcast.MaxPending || last != 3*broadcast.MaxPending {
		t.Errorf("lost %d messages, the last received is %d", lost, last)
	}
	if b.HasSubscribers() {
		t.Error("still subscribed after its context has ended")
	}
}

func TestSubscribeEndsWhenReceiveFails(t *testing.T) {
	t.Parallel()
	var b broadcast.Broadcaster[int]
	failed := errors.New("failed")
	done := make(chan error)
	go func() {
		done <- b.Subscribe(t.Context(), func(int) error { return failed }, func(int) {})
	}()
	for !b.HasSubscribers() {
		time.Sleep(time.Millisecond)
	}
	b.Send(1)
	if err := <-done; !errors.Is(err, failed) {
		t.Errorf("got %v, want the error of receive", err)
	}
}
