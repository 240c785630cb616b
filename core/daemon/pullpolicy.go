package daemon

import (
	"fmt"
	"log/slog"

	"berth/core/image"
	"berth/core/image/mirror"
	"berth/core/image/pinning"
	"berth/core/image/verify"
)

// pullPolicy returns the policy of pulls with mirrors, each as HOST=MIRROR, and image verifiers, of which
// there are none without a directory. If the verifiers cannot be used now, it returns an error and the policy that
// refuses all images until they can.
func pullPolicy(mirrors []string, verifiers verify.Config, log *slog.Logger) (p image.PullPolicy, err error) {
	if verifiers.Dir != "" {
		p.Verifier = verify.New(verifiers, log)
		if err := p.Verifier.Check(); err != nil {
			return p, fmt.Errorf("image-verifier-dir: %w", err)
		}
	}
	if p.Mirrors, err = mirror.Parse(mirrors); err != nil {
		return p, fmt.Errorf("registry-mirrors: %w", err)
	}
	return p, nil
}

// SetPinPolicy changes which images the kubelet must not remove.
func (d *Daemon) SetPinPolicy(policy pinning.Policy) { d.images.SetPinPolicy(policy) }

// SetPullPolicy changes the mirrors and the image verifiers of new pulls. mirrors are valid.
func (d *Daemon) SetPullPolicy(mirrors []string, verifiers verify.Config) {
	policy, err := pullPolicy(mirrors, verifiers, d.log)
	if err != nil {
		d.log.Error("no image can be pulled", slog.Any("err", err))
	}
	d.images.SetPullPolicy(policy)
}
