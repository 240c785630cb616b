package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/client"
)

// ErrCommandTimeout is the error of a command that ran longer than the timeout that
// its caller gave it. Besides the end of a caller's own deadline it is the only
// error that the kubelet may be answered with code DeadlineExceeded, for the kubelet
// takes that for a failed probe and kills the container (execSyncV1 in
// k8s.io/cri-client/pkg/remote_runtime.go, pkg/probe/exec in Kubernetes). An Engine
// that does not answer is of kind Unavailable, which probes ignore.
var ErrCommandTimeout = fmt.Errorf("the command ran longer than its timeout: %w", context.DeadlineExceeded)

// unanswered is the error of a call that the Engine has not answered in time. It is
// of kind Unavailable, and a context.DeadlineExceeded for those who set the deadline.
type unanswered struct{ after time.Duration }

func (e *unanswered) Error() string {
	if e.after < time.Millisecond { // the call before it has used up the time of both, as of a ping
		return "docker has not answered in time"
	}
	return fmt.Sprintf("docker has not answered within %v", e.after.Round(time.Millisecond))
}

// Unavailable makes it an error of that kind (containerd/errdefs).
func (*unanswered) Unavailable() {}

func (*unanswered) Unwrap() error { return context.DeadlineExceeded }

// IsUnanswered reports whether err says that the Engine, which is there, has not
// answered a call in time. It may still do what it was asked for.
func IsUnanswered(err error) bool {
	return errors.As(err, new(*unanswered))
}

// IsUnavailable reports whether err says that the Engine could not be reached, hung up, is
// shutting down or has lost its containerd, rather than that it refused. One call
// that is not answered in time is no sign of that, see Unanswered.
func IsUnavailable(err error) bool {
	if err == nil || IsUnanswered(err) {
		return false
	}
	var op *net.OpError
	return client.IsErrConnectionFailed(err) || errdefs.IsUnavailable(err) ||
		errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// OutcomeUnknown reports whether, for all that err says, the Engine may have done or
// may still do what it was asked for.
func OutcomeUnknown(err error) bool { return IsUnavailable(err) || IsUnanswered(err) }

// containerdLost is what an Engine says, with status 500, where it could not pass a call
// on to containerd, or could not hear how it went: because containerd has died, or
// because the Engine itself shuts down and has closed its connection. The texts are
// those of google.golang.org/grpc, in which Docker (20.10 to 29) speaks to containerd.
//
// It matches a message as a whole, and says what each part may be: the words of a pod,
// such as the name of a user that is not to be found, are in other errors.
var containerdLost = regexp.MustCompile(`^(?:[\w .'=-]+: )*(?:` +
	`(?:closing transport due to: )?connection error: desc = "(?:transport: [Ee]rror while dialing|error reading (?:server preface|from server)|keepalive ping failed)[^"]*"(?:, received prior goaway: .*)?` + // containerd does not listen, or died while the connection was made or closed
	`|error reading from server: (?:(?:read unix [^ ]+: )?(?:read: )?[a-z ]+|(?:unexpected )?EOF)` + // it died during the call
	`|transport is closing` + // the same, before grpc 1.36
	`|(?:the connection is draining|keepalive ping failed to receive ACK within timeout)` + // containerd shuts down, or hangs
	`|the client connection is closing` + // the Engine shuts down
	`)(?:: unavailable|: unknown|: context canceled)*$`)

// ContainerdLost reports whether text, the message of an Engine's error, says that it
// has no connection to its containerd. What it was asked for then has nothing to do
// with the failure: it can be asked for again.
func ContainerdLost(text string) bool { return containerdLost.MatchString(strings.TrimSpace(text)) }
