package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// ErrCommandTimeout is the error of a command that ran longer than the timeout that its caller gave it. Besides the end of a
// caller's own deadline it is the only error that the kubelet may be answered with code DeadlineExceeded, for the kubelet takes
// that for a failed probe and kills the container (execSyncV1 in k8s.io/cri-client/pkg/remote_runtime.go, pkg/probe/exec in
// Kubernetes). An Engine that does not answer is of kind Unavailable, which probes ignore.
var ErrCommandTimeout = fmt.Errorf("the command ran longer than its timeout: %w", context.DeadlineExceeded)

// timeoutError is the error of a call that the Engine has not answered in time. It is of kind Unavailable, and a
// context.DeadlineExceeded for callers that set the deadline.
type timeoutError struct{ after time.Duration }

func (e *timeoutError) Error() string {
	if e.after < time.Millisecond { // an earlier call under the same deadline, as of a ping, has used it up
		return "docker has not answered in time"
	}
	return fmt.Sprintf("docker has not answered within %v", e.after.Round(time.Millisecond))
}

// Unavailable makes it an error of that kind (containerd/errdefs).
func (*timeoutError) Unavailable() {}

func (*timeoutError) Unwrap() error { return context.DeadlineExceeded }

// IsUnanswered reports whether err says that a reachable Engine has not answered a call in time. It may still do what it was
// asked for.
func IsUnanswered(err error) bool {
	return errors.As(err, new(*timeoutError))
}

// IsUnavailable reports whether err says that the Engine could not be reached, closed the connection, is shutting down or has
// no connection to its containerd, rather than that it refused the call. A single call that is not answered in time does not
// mean that, see IsUnanswered.
func IsUnavailable(err error) bool {
	if err == nil || IsUnanswered(err) {
		return false
	}
	var op *net.OpError
	return client.IsErrConnectionFailed(err) || errdefs.IsUnavailable(err) ||
		errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// OutcomeUnknown reports whether, after err, the Engine may have done or may still do what it was asked for.
func OutcomeUnknown(err error) bool { return IsUnavailable(err) || IsUnanswered(err) }

// Below are all texts of Docker that this package matches, for lack of a status, field or error code.

// containerdLost matches the messages of an Engine, with status 500, that could not pass a call on to containerd or did not
// receive the result: because containerd has died, or because the Engine itself shuts down and has closed its connection. They
// are texts of google.golang.org/grpc (one is of libnetwork), which Docker 20.10 to 29 passes on as they are.
//
// It matches a message as a whole and is strict about each part: words that a pod can choose, such as the name of a user that
// does not exist, are in other errors (TestContainerdLostIgnoresTextsOfPods).
var containerdLost = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(?:[\w .'=-]+: )*(?:code = \w+ desc = )?(?:` + // with the gRPC status, docker >= 29
		`(?:closing transport due to: )?connection error: desc = "(?:transport: (?:[Ee]rror while dialing|failed to write|preface mismatch)|error reading (?:server preface|from server)|initial http2 frame from server|received goaway|no active streams left|keepalive ping failed)[^"]*"(?:, received prior goaway: .*)?` + // containerd does not listen, or died while the connection was made or closed
		`|error reading from server: (?:(?:read unix [^ ]+: )?(?:read: )?[a-z ]+|(?:unexpected )?EOF)` + // it died during the call
		`|transport is closing` + // the same, before grpc 1.36
		`|connection closed(?: before server preface received)?|timed out waiting for server handshake|failed to receive server preface within timeout` + // it died while the connection was made; the first two before grpc 1.41, as in docker 20.10
		`|SubConn shutting down|the stream is rejected because server is draining the connection` +
		`|the connection is (?:closing(?: due to channel idleness)?|drained)` +
		`|(?:the connection is draining|keepalive ping failed to receive ACK within timeout)` + // containerd shuts down, or hangs
		`|the client connection is closing` + // the Engine shuts down, as in the next line: libnetwork has closed its store
		`|failed to update store for object type \*libnetwork\.\w+: (?:open : no such file or directory|database not open)` +
		`)(?:: unavailable|: unknown|: context canceled)*$`)
})

// ContainerdLost reports whether text, the message of an Engine's error, says that the Engine has no connection to its
// containerd. The failure has nothing to do with the call, which can be repeated.
func ContainerdLost(text string) bool { return containerdLost().MatchString(strings.TrimSpace(text)) }

// exitUnseen ends the error of a stop, kill or removal whose SIGKILL Docker has sent ten seconds before (daemon/kill.go in
// docker 20.10 to 29): the process cannot end, or Docker has missed its end because containerd was killed.
const exitUnseen = "tried to kill container, but did not receive an exit event"

// unknownCommit is ContainerdCommit.ID of GET /info if the Engine cannot ask its containerd (daemon/info_unix.go in docker
// 20.10 to 29; TestLostContainerdIsUnavailable).
const unknownCommit = "N/A"

// parseExitStatus returns the exit code from Status of a list entry, as in "Exited (3) 5 minutes ago": the only place where a
// list has it (State.String of moby, docker 20.10 to 29; the law "a list and an inspect report the same state" in
// core/engine/enginelaws).
func parseExitStatus(status string) (code int, ok bool) {
	_, err := fmt.Sscanf(status, "Exited (%d)", &code)
	return code, err == nil
}

// Discarded returns the first of the warnings about a new container that says that the Engine has left a setting out (verifyPlatformContainerResources in daemon/daemon_unix.go), or "".
func Discarded(warnings []string) string {
	if i := slices.IndexFunc(warnings, func(w string) bool { return strings.Contains(w, "discarded") }); i >= 0 {
		return warnings[i]
	}
	return ""
}
