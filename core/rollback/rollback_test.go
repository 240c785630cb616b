package rollback_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"berth/core/rollback"
)

var errStep = errors.New("step failed")

func TestRollbackRunsBackwardsAfterCancel(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var order []int
	work := func() (err error) {
		var undo rollback.Stack
		defer undo.Rollback(ctx, &err)
		for i := range 3 {
			undo.Push(fmt.Sprintf("undo step %d", i), func(ctx context.Context) error {
				order = append(order, i)
				return ctx.Err() // nil although the caller has cancelled
			})
		}
		cancel()
		return errStep
	}
	if err := work(); !errors.Is(err, errStep) || err.Error() != errStep.Error() {
		t.Errorf("err = %v, want only %v", err, errStep)
	}
	if !slices.Equal(order, []int{2, 1, 0}) {
		t.Errorf("order = %v, want 2 1 0", order)
	}
}

func TestRollbackErrorsNameTheirSteps(t *testing.T) {
	errBusy := errors.New("device is busy")
	first := false
	err := errStep
	var undo rollback.Stack
	undo.Push("remove directory", func(context.Context) error { first = true; return nil })
	undo.Push("unmount volume", func(context.Context) error { return errBusy })
	undo.Rollback(t.Context(), &err)
	if want := "step failed\nrollback: unmount volume: device is busy"; err.Error() != want || !errors.Is(err, errStep) || !errors.Is(err, errBusy) {
		t.Errorf("err = %q, want %q", err, want)
	}
	if !first {
		t.Error("the first step was not undone after the second failed")
	}
}

func TestRollbackDoesNothingAfterSuccess(t *testing.T) {
	var err error
	var undo rollback.Stack
	undo.Push("undo", func(context.Context) error { t.Error("called"); return nil })
	undo.Rollback(t.Context(), &err)
}
