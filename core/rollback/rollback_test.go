package rollback_test

import (
	"context"
	"errors"
	"testing"

	"berth/core/rollback"
)

var errBoom = errors.New("boom")

func TestRollbackRunsBackwardsAfterCancel(t *testing.T) {
	ctx, hangUp := context.WithCancel(t.Context())
	var order []int
	work := func() (err error) {
		var steps rollback.Stack
		defer steps.Rollback(ctx, &err)
		for i := range 3 {
			steps.Push(func(ctx context.Context) error {
				order = append(order, i)
				return ctx.Err() // must be alive although the caller hung up
			})
		}
		hangUp()
		return errBoom
	}
	if err := work(); !errors.Is(err, errBoom) || err.Error() != "boom" {
		t.Errorf("err = %v, want only boom", err)
	}
	if len(order) != 3 || order[0] != 2 || order[2] != 0 {
		t.Errorf("order = %v, want 2 1 0", order)
	}
}

func TestRollbackKeepsASuccess(t *testing.T) {
	var err error
	var steps rollback.Stack
	steps.Push(func(context.Context) error { t.Error("took back a step of a success"); return nil })
	steps.Rollback(t.Context(), &err)
}
