package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
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
	c.checkPinnedImages(ctx, conn)
}

const (
	// maxPinnedNames is how many pinned images are named.
	maxPinnedNames = 5
	// maxPinnedShare is the part of the disk, in percent, above which pinned images are a
	// warning: the kubelet then has too little left to remove (imageGCLowThresholdPercent is 80).
	maxPinnedShare = 50
)

// checkPinnedImages reports the images that the kubelet's garbage collection must not remove.
func (c *checker) checkPinnedImages(ctx context.Context, conn *grpc.ClientConn) {
	list, err := runtimeapi.NewImageServiceClient(conn).ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return // the checks of Docker and of the socket say why
	}
	pinned := slices.DeleteFunc(list.GetImages(), func(i *runtimeapi.Image) bool { return !i.GetPinned() })
	slices.SortFunc(pinned, func(a, b *runtimeapi.Image) int { return cmp.Compare(b.GetSize(), a.GetSize()) })
	var bytes uint64
	var names []string
	for n, i := range pinned {
		bytes += i.GetSize()
		if n < maxPinnedNames {
			names = append(names, cmp.Or(strings.Join(i.GetRepoTags(), " "), strings.Join(i.GetRepoDigests(), " "), i.GetId()))
		}
	}
	if len(pinned) > maxPinnedNames {
		names = append(names, fmt.Sprintf("and %d more", len(pinned)-maxPinnedNames))
	}
	found := fmt.Sprintf("%d images with %.1f GB are not removed by the kubelet's garbage collection: %s", len(pinned), float64(bytes)/1e9, strings.Join(names, ", "))
	var fs unix.Statfs_t
	switch {
	case len(pinned) == 0:
		c.ok("pinned images", "the kubelet's garbage collection may remove every image")
	case c.engine != nil && unix.Statfs(c.path(c.engine.ImageFS()), &fs) == nil && bytes*100 > fs.Blocks*uint64(fs.Bsize)*maxPinnedShare:
		c.warn("pinned images", found+fmt.Sprintf("; they may take more than %d %% of the disk", maxPinnedShare),
			"docker rmi those that are not needed; keep-local-images, pinned-images and pin-labels decide what is pinned")
	default:
		c.ok("pinned images", found)
	}
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
