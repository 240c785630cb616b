package daemon

import (
	"context"
	"log/slog"
	"net"
	"time"

	sdnotify "github.com/coreos/go-systemd/v22/daemon"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// watchdogPings is how many checks there are within WatchdogSec of the unit: a single slow one does not end the daemon.
const watchdogPings = 3

// A watchdog reports to the service manager that the daemon works, for as long as it does: a berthd that hangs is
// killed and started again, which does not affect pods.
type watchdog struct {
	timeout time.Duration // the service manager's; 0 if it has none for this process
	check   func(context.Context) error
	notify  func(state string)
	log     *slog.Logger
}

// newWatchdog returns the watchdog that WATCHDOG_USEC and WATCHDOG_PID describe.
func newWatchdog(check func(context.Context) error, notify func(state string), log *slog.Logger) *watchdog {
	timeout, err := sdnotify.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the watchdog of the service manager is not served", slog.Any("err", err))
	}
	return &watchdog{timeout: timeout, check: check, notify: notify, log: log}
}

// Run checks and reports until ctx ends. It returns nil.
func (w *watchdog) Run(ctx context.Context) error {
	if w.timeout == 0 {
		return nil
	}
	interval := w.timeout / watchdogPings
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, interval)
		err := w.check(bounded)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			w.notify(sdnotify.SdNotifyWatchdog)
		default:
			w.log.Error("berthd does not respond on its own socket; the service manager will restart it", slog.Duration("timeout", w.timeout), slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// checkCRI calls the CRI server at addr. The call reaches the connection to Docker and the cache with their locks, but not
// Docker: an error with which the server responds, as while Docker is away, is nil here. A call that waits for Docker does so
// for a few seconds at most (cache.Ready).
func checkCRI(ctx context.Context, addr net.Addr) error {
	conn, err := grpc.NewClient("passthrough:///cri", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, addr.Network(), addr.String())
		}))
	if err != nil {
		return err
	}
	defer conn.Close()
	// No ID has this prefix. With WaitForReady a socket that nobody serves makes the call wait: only the server can respond.
	filter := &runtimeapi.PodSandboxFilter{Id: "watchdog"}
	_, err = runtimeapi.NewRuntimeServiceClient(conn).ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: filter}, grpc.WaitForReady(true))
	if code := status.Code(err); code == codes.DeadlineExceeded || code == codes.Canceled {
		return err
	}
	return nil
}
