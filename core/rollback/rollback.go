// Package rollback undoes the completed steps of an operation that fails later.
//
// A Stack is local to one call. Each step that leaves something behind, such as a created
// container or an attached network, pushes a function that removes it, with a
// description that is part of the error if that function fails.
package rollback

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Timeout bounds all functions of one Rollback together.
const Timeout = 30 * time.Second

// A Stack collects the functions that undo the steps done so far. The zero Stack is
// ready to use.
//
//	var undo rollback.Stack
//	defer undo.Rollback(ctx, &err)
type Stack struct {
	steps []step
}

type step struct {
	description string
	undo        func(context.Context) error
}

// Push adds undo, which is called if a later step fails. The description says what it does, as
// in "remove container web".
func (s *Stack) Push(description string, undo func(context.Context) error) {
	s.steps = append(s.steps, step{description, undo})
}

// Rollback calls the pushed functions, last first, if *err is not nil. Each is called even
// if others fail; their errors are joined to *err. The cancellation of ctx is ignored:
// a client that cancels its call must not leave a part of a pod behind.
func (s *Stack) Rollback(ctx context.Context, err *error) {
	if *err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Timeout)
	defer cancel()
	for _, step := range slices.Backward(s.steps) {
		if undoErr := step.undo(ctx); undoErr != nil {
			*err = errors.Join(*err, fmt.Errorf("rollback: %s: %w", step.description, undoErr))
		}
	}
}
