package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// statusTimeout limits the CRI call Status, which berthd answers from memory.
const statusTimeout = 3 * time.Second

// checkSocket checks the CRI socket: that it is there, for root only, and that Status reports ready.
func (c *checker) checkSocket(ctx context.Context) {
	path := c.path(socketPath(c.daemon.ClientEndpoint()))
	const start = "systemctl enable --now berth.socket berth.service"
	info, err := os.Stat(path)
	switch {
	case err != nil:
		c.fail("socket", "nothing is at "+path, start)
		return
	case info.Mode()&os.ModeSocket == 0:
		c.fail("socket", path+" is not a socket", "remove it and: "+start)
		return
	case info.Mode().Perm()&0o007 != 0:
		c.fail("socket", fmt.Sprintf("%s has mode %04o: everybody on this node can be root", path, info.Mode().Perm()),
			"remove SocketMode= from drop-ins of berth.socket and: systemctl restart berth.socket")
		return
	case errors.Is(unix.Access(path, unix.W_OK), fs.ErrPermission):
		c.fail("socket", path+" is not for this user", "run the doctor as root")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.fail("socket", err.Error(), "correct container-runtime-endpoint")
		return
	}
	defer conn.Close()
	status, err := runtimeapi.NewRuntimeServiceClient(conn).Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		c.fail("socket", path+" does not answer: "+err.Error(), "see: systemctl status berth.service, journalctl -u berth.service")
		return
	}
	c.checkConditions(path, status.GetStatus().GetConditions())
}

// checkConditions checks the conditions in the answer of Status. One that is false because of what another check has
// found already is not counted as a second failure.
func (c *checker) checkConditions(path string, conditions []*runtimeapi.RuntimeCondition) {
	causes := map[string]string{runtimeapi.RuntimeReady: "docker", runtimeapi.NetworkReady: "network"}
	ready := true
	for _, condition := range conditions {
		if condition.GetStatus() {
			continue
		}
		if !c.has(causes[condition.GetType()], Fail) {
			c.fail("socket", fmt.Sprintf("%s answers, but %s: %s", path, condition.GetReason(), condition.GetMessage()), "do as the other lines say")
			return
		}
		ready = false
	}
	if ready {
		c.ok("socket", path+" answers, and is ready")
	} else {
		c.ok("socket", path+" answers, and will be ready once the failures above are fixed")
	}
}
