// Package core is the floor plan. It holds no code: the rooms are its
// sub-packages, and house_test.go keeps the walls where this comment says they
// are.
//
//	door        cmd/berthd                      flags, wiring, signals
//	front desk  core/server                     one method per CRI call
//	rooms       core/sandbox  core/container    one subject each; rooms
//	            core/image    core/exec         never import each other
//	            core/logs     core/stats
//	landing     core/view                       all that Docker runs, in memory
//	            core/profiles                   security profiles of the node
//	stairs      core/todocker core/tocri        pure translation, no I/O
//	ground      core/engine                     the connection to Docker
//	            network                         CNI and network namespaces
//	            streaming                       HTTP streams
//	            core/oom                        which containers the kernel has killed for want of memory
//	cellar      core/labels core/names          the words we write on containers
//	            core/journal core/checkpoint    small files
//	            core/pause    core/cgroup       the pause image; cgroup files
//	            core/systemd                    what systemd must know of cgroups
//	            core/mounts                     mounts that the Engine cannot be asked for
//	            core/metrics                    /metrics and /healthz for the operator's tools
//	            core/panics                     panics as errors
//	            core/undo core/turns            small tools
//	            core/scramble                   messages that no kubelet sends, for tests
//
// Imports point down this list, never up and never sideways.
package core
