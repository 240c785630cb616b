package main

import "context"

// A side runs pods: all sides are asked for the same, in the same order.
type side interface {
	name() string
	// run sets up a pod, create makes a container in it that runs a script.
	run(ctx context.Context, pod string) (sandbox string, err error)
	create(ctx context.Context, sandbox, pod, container, script string) (id string, err error)
	start(ctx context.Context, id string) error
	status(ctx context.Context, id string) error
	exec(ctx context.Context, id string) error
	stopContainer(ctx context.Context, id string) error
	removeContainer(ctx context.Context, id string) error
	stop(ctx context.Context, sandbox string) error
	remove(ctx context.Context, sandbox string) error
	// ended reports whether a container has ended.
	ended(ctx context.Context, id string) (bool, error)
	// logLines counts the lines of a container's log.
	logLines(ctx context.Context, id, pod, container string) (int, error)
	// lists are the questions about all there is, by the row they are measured as.
	lists() []question
	// relist is what a kubelet asks in the given second.
	relist(ctx context.Context, second int) error
	// empty is a call that does nothing.
	empty(ctx context.Context) error
	// cost is what may be running on behalf of the side.
	cost() []process
}

// A question is a list that is asked for, and how often to measure it.
type question struct {
	row   string
	times int
	ask   func(ctx context.Context) (found int, err error)
}

// A pod that has been set up.
type pod struct {
	name, sandbox string
	containers    []string
}

// sleeping is what a container at rest runs.
const sleeping = "exec sleep 1000000"

// up sets up a pod of one container.
func up(ctx context.Context, s side, name, script string) (p pod, err error) {
	p.name = name
	if p.sandbox, err = s.run(ctx, name); err != nil {
		return p, err
	}
	return p, more(ctx, s, &p, "c0", script)
}

// more starts one more container in a pod.
func more(ctx context.Context, s side, p *pod, name, script string) error {
	id, err := s.create(ctx, p.sandbox, p.name, name, script)
	if err != nil {
		return err
	}
	p.containers = append(p.containers, id)
	return s.start(ctx, id)
}

// down takes a pod away as a kubelet does.
func down(ctx context.Context, s side, p pod) error {
	for _, id := range p.containers {
		if err := s.stopContainer(ctx, id); err != nil {
			return err
		}
		if err := s.removeContainer(ctx, id); err != nil {
			return err
		}
	}
	if p.sandbox == "" {
		return nil
	}
	if err := s.stop(ctx, p.sandbox); err != nil {
		return err
	}
	return s.remove(ctx, p.sandbox)
}
