package enginelaws

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/image"
)

// localImageHasDigestWithContainerd: Docker's own store notes a digest when an image is pulled or
// pushed. With the containerd image store every name has one, so the digests of an image do not
// tell whether a registry has it; neither does any other field of its inspect result before API
// 1.53. A list with API 1.54 tells it, and names no repository for an image that was built,
// imported or loaded.
func localImageHasDigestWithContainerd(c *lawTest) {
	const ref = "law-built.test/a:1"
	c.must(c.docker.ImageTag(c.ctx, c.ref, ref)) // no registry has c.ref either
	c.Cleanup(func() {
		_, err := c.docker.ImageRemove(context.WithoutCancel(c.ctx), ref, image.RemoveOptions{})
		c.must(err)
	})
	info, err := c.docker.Info(c.ctx)
	c.must(err)
	isContainerd := slices.ContainsFunc(info.DriverStatus, func(s [2]string) bool {
		return s[0] == "driver-type" && strings.HasPrefix(s[1], "io.containerd.snapshotter")
	})
	found, err := c.docker.ImageInspect(c.ctx, ref)
	c.must(err)
	if got := len(found.RepoDigests) > 0; got != isContainerd {
		c.Errorf("digests %v; containerd image store: %v", found.RepoDigests, isContainerd)
	}
	socket, isUnix := strings.CutPrefix(c.docker.DaemonHost(), "unix://")
	if !isContainerd || !isUnix {
		return
	}
	// docker/client v28.5 has no field for it.
	direct := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	r, err := http.NewRequestWithContext(c.ctx, http.MethodGet, "http://docker/v1.54/images/json?manifests=1&identity=1", http.NoBody)
	c.must(err)
	resp, err := direct.Do(r)
	c.must(err)
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusBadRequest {
		return // an older Engine
	}
	var rows []struct {
		ID        string
		Manifests []struct {
			ImageData *struct{ Identity *struct{ Pull []any } }
		}
	}
	c.must(json.NewDecoder(resp.Body).Decode(&rows))
	for _, row := range rows {
		if row.ID != found.ID {
			continue
		}
		for _, m := range row.Manifests {
			if m.ImageData != nil && m.ImageData.Identity != nil && len(m.ImageData.Identity.Pull) > 0 {
				c.Errorf("an image that was not pulled has the origin %v", m.ImageData.Identity.Pull)
			}
		}
		return
	}
	c.Errorf("%s is not in the list", found.ID)
}
