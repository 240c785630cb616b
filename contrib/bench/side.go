package main

import "context"

// A side runs pods: all sides get the same operations, in the same order.
type side interface {
	name() string
	// run creates a sandbox, create creates a container in it that runs a script.
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
	// lists returns the list calls with their rows.
	lists() []listCall
	// relist makes the calls of a kubelet in the given second.
	relist(ctx context.Context, second int) error
	// noop makes a call without work.
	noop(ctx context.Context) error
	// cost returns the processes that work for the side.
	cost() workers
}

// A listCall is a call that returns a list, with the number of measurements.
type listCall struct {
	row   string
	times int
	call  func(ctx context.Context) (found int, err error)
}

// A pod is a sandbox with its containers.
type pod struct {
	name, sandbox string
	containers    []string
}

// sleeping is the script of an idle container.
const sleeping = "exec sleep 1000000"

// startPod starts a pod of one container.
func startPod(ctx context.Context, s side, name, script string) (p pod, err error) {
	p.name = name
	if p.sandbox, err = s.run(ctx, name); err != nil {
		return p, err
	}
	return p, addContainer(ctx, s, &p, "c0", script)
}

// addContainer starts another container in a pod.
func addContainer(ctx context.Context, s side, p *pod, name, script string) error {
	id, err := s.create(ctx, p.sandbox, p.name, name, script)
	if err != nil {
		return err
	}
	p.containers = append(p.containers, id)
	return s.start(ctx, id)
}

// removePod removes a pod in the steps of a kubelet.
func removePod(ctx context.Context, s side, p pod) error {
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
