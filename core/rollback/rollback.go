// Package rollback takes back the steps of an operation that failed half-way.
//
// It is used by rooms whose calls leave things behind: a created container, a
// network attachment, a directory.
package rollback

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Limit bounds how long a Stack may spend taking steps back.
const Limit = 30 * time.Second

// A Stack collects how to take back the steps done so far. The zero Stack is
// ready to use.
//
//	var steps undo.Stack
//	defer steps.Rollback(ctx, &err)
type Stack struct {
	steps []func(context.Context) error
}

// Push records how to take back the step that has just succeeded.
func (s *Stack) Push(step func(context.Context) error) {
	s.steps = append(s.steps, step)
}

// Rollback runs the recorded steps, last first, if *err is not nil, and joins
// what they could not take back to *err. It outlives the cancellation of ctx:
// a kubelet that hangs up must not leave half a pod behind.
func (s *Stack) Rollback(ctx context.Context, err *error) {
	if *err == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Limit)
	defer cancel()
	for _, step := range slices.Backward(s.steps) {
		*err = errors.Join(*err, step(ctx))
	}
}
