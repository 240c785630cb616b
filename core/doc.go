// Package core holds no code: it documents the layers of the daemon, and its tests
// keep imports pointing down this list, never up and never sideways. What each package
// owns and how calls travel through them is in contrib/docs/architecture.md.
//
// Command:
//
//	cmd/berthd                        commands, signals; internal/config: flags and configuration
//	                                  files; internal/doctor: checks of the node;
//	                                  internal/pods: its pods
//	                                  internal/pulls: the table of running pulls
//	cmd/berth-oci                     the OCI runtime; of berth it imports core/ociedit, core/rootdiff and core/trust
//	                                  only. internal/argv: the arguments of runtimes; internal/spec: edits of
//	                                  config.json, no I/O; internal/userns: mounts of containers with a user
//	                                  namespace; internal/restore: containers that go on from a checkpoint
//	core/daemon                       the composition root: creates and runs all of it
//	core/server                       the CRI's gRPC services and interceptors
//	core/podcheckpoint                CheckpointPod and RestorePod, with the services below
//
// Services, one subject of the CRI each. They never import each other:
//
//	core/sandbox    core/container    pods; life cycle of containers
//	core/image      core/exec         images; exec, attach and port-forward
//	core/logs       core/stats        log files; usage and metrics
//	core/imagecopy                    copies of images between Docker and containerd
//
// Below the services:
//
//	core/resources                    settings of containers that the Engine API cannot express
//	core/securityprofile              seccomp and AppArmor profiles of the node
//	core/stats/diskusage              the size of writable layers
//	core/image/passwd                 users and groups of images
//	core/nri        core/nri/adjust   NRI plugins; what they change in containers, pure
//	core/premounts                    the life cycle of premounts, and the images that they need
//	core/relabel                      SELinux labels of volumes
//	core/exitlog    core/verbose      log lines of exits; what verbose statuses add
//	core/image/imagecache             every image in memory
//	core/image/origin                 which registries have an image
//	core/image/eventstream            following events over one connection after the other
//	core/image/foreign                containers outside of pods, and their images
//	core/cache                        every sandbox and container in memory
//	core/todocker   core/tocri        pure translation, no I/O; core/limits, core/identity and
//	                                  core/bandwidth are the parts of it for resources, users
//	                                  and network limits
//	core/podpolicy                    what the operator lets pods have beyond the CRI: annotations
//	                                  for runtimes, limits by annotation, shims
//	core/ociinstall                   installs the OCI runtime on a node, and inspects it there
//	core/specedit   core/specfiles    what berth's OCI runtime changes in containers, pure; files of
//	                                  the operator that change OCI specs
//	core/userns     core/ociruntime   user namespaces of pods, pure; instructions for berth's OCI
//	                                  runtime, and what the kernel can do
//	core/engine                       the connection to the Docker Engine
//	network                           CNI attachments of pods
//	core/oom                          containers that the kernel has killed for memory
//	streaming                         byte streams of exec, attach and port-forward
//
// Utilities:
//
//	network/cniconf network/netns     the CNI configuration; network namespaces
//	network/cnitemplate               the CNI configuration that berth makes of the pod CIDR
//	core/labels     core/names        labels and names that berth gives to containers
//	core/state      core/checkpoint   files that outlive the daemon
//	core/premount                     mounts that the Engine API cannot express
//	core/cdi                          CDI devices, and their specifications on the node
//	core/blockio                      block I/O classes
//	core/ocifeatures                  what low-level runtimes report about themselves
//	core/pending                      creates that outlived their caller's deadline
//	core/cgroup     core/systemd      cgroup files and scopes
//	core/stats/cgroupstats            values of cgroup files and /proc
//	core/logs/...                     Docker's log files (logfile, in the formats jsonfile and
//	                                  localfile) and log stream (logstream), CRI log files (crifile)
//	core/image/registryauth           credentials for registries
//	core/image/pullprogress           how far pulls are
//	core/image/pinning                which images the kubelet must not remove, pure
//	core/image/pullerror              errors of pulls, from the texts of registries
//	core/image/verify                 programs that decide which images may be pulled
//	core/image/mirror                 mirrors of registries, and names of images from them
//	core/hostprobe                    what /proc says about Docker, containerd and the kernel
//	core/dockerconfig                 daemon.json and the flags of dockerd
//	core/bundle     core/changes      OCI specs of containers; log attributes of changes
//	core/criu       core/criu/archive checkpoints of containers and pods: CRIU, archives
//	core/restore    core/rootdiff     checkpoints that containers are restored from; changed files of their
//	                                  root file systems
//	core/ociedit                      what cmd/berth-oci changes in the OCI specs of containers
//	core/pause                        the built-in pause image
//	core/metrics                      the HTTP server of /metrics and /healthz
//	core/tracing                      spans of parts of a call; core/tracing/otlp exports them
//	core/httpserver                   HTTP for clients that watch the daemon
//	core/panics     core/rollback     panics as errors; undo of finished steps
//	core/kmutex     core/singleflight locks by key; calls that share one execution
//	core/broadcast  core/sleep        queues of subscribers; sleep that a context ends
//	core/quantity                     quantities as Kubernetes writes them
//	core/atomicfile                   files that are replaced as a whole
//	core/kernelfile                   small files of the kernel
//	core/trust                        files that only root can change
//	core/shorten    core/eventlag     bounded texts of errors; how far the cache is behind events
//	core/containerd                   the gRPC API of a containerd
//
// Support for tests:
//
//	core/engine/enginetest            a fake Docker Engine
//	core/containerd/containerdtest    a fake containerd
//	core/engine/enginelaws            rules that the fake and real Engines follow
//	core/nri/nritest                  a fake NRI plugin
//	core/protofuzz  core/testmain     random messages; flags of test binaries
//	core/tracing/tracingtest          a collector of traces
//	network/networktest               network namespaces for tests
package core
