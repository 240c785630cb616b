// Package core holds no code: it documents the layers of the daemon, and its tests
// keep imports pointing down this list, never up and never sideways.
//
//	cmd/berthd                        commands, signals
//	cmd/berthd/internal/doctor        checks of the node
//	cmd/berthd/internal/config        flags, configuration files, defaults
//	core/daemon                       the composition root: creates and runs all of it
//	core/server                       the CRI's gRPC services and interceptors
//	core/sandbox    core/container    services, one subject of the CRI each;
//	core/image      core/exec         they never import each other
//	core/logs       core/stats
//	core/resources                    settings of containers that the Engine API cannot express
//	core/stats/diskusage              what containers have written to disk
//	core/cache                        every sandbox and container in memory
//	core/securityprofile              seccomp and AppArmor profiles of the node
//	core/todocker   core/tocri        pure translation, no I/O: sandboxes, containers, images,
//	core/limits     core/identity     resources, users and groups,
//	core/bandwidth                    bandwidth of pods
//	core/engine                       the connection to the Docker Engine
//	network                           CNI attachments of pods
//	streaming                         byte streams of exec, attach and port-forward
//	core/oom                          containers that the kernel has killed for memory
//	network/netns                     network namespaces of pods
//	network/cniconf                   the CNI configuration of the node
//	core/labels     core/names        labels and names that berth gives to containers
//	core/state      core/checkpoint   files that outlive the daemon
//	core/stats/cgroupstats            what cgroup files and /proc say of usage
//	core/cgroup     core/systemd      cgroup files and scopes
//	core/premount                     mounts that the Engine API cannot express
//	core/hostprobe                    what /proc tells about Docker, containerd and the kernel
//	core/pending                      creates that outlived their caller's deadline
//	core/pause                        the built-in pause image
//	core/metrics                      /metrics and /healthz
//	core/panics     core/rollback     utilities
//	core/kmutex     core/broadcast
//	core/kmutex
//	core/logs/jsonfile                Docker's json-file logs
//	core/logs/logstream               the log stream of the Engine API
//	core/logs/crifile                 the CRI log files that the kubelet reads
//	core/logs/dockerlog               an entry of Docker's logs
//	core/kmutex     core/singleflight
//	core/atomicfile                   files replaced as a whole
//	core/testmain   core/protofuzz    support for tests
//	core/engine/enginetest            a fake Docker Engine for tests
//	core/engine/enginelaws            what both it and real Engines must do
//	core/kmutex     core/sleep
//	core/atomicfile                   files replaced as a whole
//	core/testmain   core/protofuzz    support for tests
//	network/networktest
package core
