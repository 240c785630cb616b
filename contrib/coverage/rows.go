package main

// windows is the reason for fields that a kubelet does not send to a Linux node.
const windows = "berth runs on Linux"

var messages = []message{
	{"VersionRequest", []row{
		{"version", nothing, "kubelets of every version get the same response and check it themselves", ""},
	}},
	{"VersionResponse", []row{
		{"version", berth, "0.1.0, as in other runtimes", "e2e.TestCRI"},
		{"runtime_name", berth, "docker, as in cri-dockerd: it is part of every container ID that users see", "e2e.TestCRI"},
		{"runtime_version", engine, "`ServerVersion` of info, in a form that kubelets can parse", "server.TestVersionIsSemantic"},
		{"runtime_api_version", berth, "v1", "e2e.TestCRI"},
	}},
	{"RunPodSandboxRequest", []row{
		{"config", engine, "a pause container, created from the fields of the message", "live.TestPodRunsAndIsRemoved"},
		{"runtime_handler", engine, "`HostConfig.Runtime`, for the pod's containers too; or the shim that `shim-runtimes` has for it; a handler that Docker does not have is refused", "todocker.TestSandboxVariants todocker.TestSandboxRefuses live.TestPauseProcessSettings podpolicy.TestRuntimeHandlers live.TestShimIsARuntimeHandler"},
	}},
	{"PodSandboxConfig", []row{
		{"metadata", store, "the name of the pause container and the label `berth.config`", "todocker.TestSandboxWithoutDockerNetwork names.FuzzRoundTrip"},
		{"hostname", engine, "`Config.Hostname` of the pause container, truncated to 64 bytes, or Docker's default, the first digits of the ID; the pod's hostname and hosts files have the same name; on the node's network the node's host name", "live.TestNamespacesOfPods sandbox.TestFilesHaveTheHostnameOfTheEngine todocker.TestHostname"},
		{"log_directory", berth, "the directory of the containers' logs", "live.TestPodRunsAndIsRemoved todocker.TestSandboxRefuses"},
		{"dns_config", files, "the pod's resolv.conf, and the DNS settings passed to plugins", "live.TestPodRunsAndIsRemoved todocker.TestResolvConf"},
		{"port_mappings", plugins, "the capability `portMappings`; with `--network-plugin=\"\"` `HostConfig.PortBindings`; not needed for a pod on the node's network", "network.TestRealHostPortIsForwarded network.TestAttachPassesDeclaredCapabilities todocker.TestSandboxVariants"},
		{"labels", store, "labels of the pause container", "live.TestPodRunsAndIsRemoved labels.FuzzRoundTrip"},
		{"annotations", store, "labels of the pause container, with cri-dockerd's prefix; `kubernetes.io/ingress-bandwidth` and `egress-bandwidth` are passed to the network plugins, and refused if they are not quantities from 1k to 1P; `berth.ulimits`, `berth.shm-size`, `berth.writable-cgroups` and `berth.rootfs-size` set limits where `allow-annotations` allows it; those of `oci-annotations` are `HostConfig.Annotations`, from Docker 24 on", "live.TestPodRunsAndIsRemoved labels.FuzzRoundTrip todocker.TestBandwidthMustBeAQuantityInRange live.TestLimitsByAnnotation live.TestAnnotationsReachTheRuntime"},
		{"linux", engine, "see its fields", "todocker.TestSandboxVariants"},
		{"windows", refused, "unless it is empty: berth runs on Linux", "todocker.TestSandboxRefuses"},
	}},
	{"PodSandboxMetadata", []row{
		{"name", store, "the name of the pause container; refused if empty", "todocker.TestSandboxWithoutDockerNetwork todocker.TestSandboxRefuses"},
		{"uid", store, "the name of the pause container; refused if empty", "todocker.TestSandboxWithoutDockerNetwork todocker.TestSandboxRefuses"},
		{"namespace", store, "the name of the pause container; refused if empty", "todocker.TestSandboxWithoutDockerNetwork todocker.TestSandboxRefuses"},
		{"attempt", store, "the name of the pause container", "todocker.TestSandboxWithoutDockerNetwork tocri.TestSandbox"},
	}},
	{"DNSConfig", []row{
		{"servers", files, "the lines `nameserver` of the pod's resolv.conf, without others", "todocker.TestResolvConf live.TestPodRunsAndIsRemoved"},
		{"searches", files, "the line `search`", "todocker.TestResolvConf live.TestPodRunsAndIsRemoved"},
		{"options", files, "the line `options`", "todocker.TestResolvConf live.TestPodRunsAndIsRemoved"},
	}},
	{"PortMapping", []row{
		{"protocol", plugins, "in lower case; refused if the CRI has no such protocol", "network.TestAttachPassesDeclaredCapabilities network.TestRealHostPortIsForwarded todocker.TestSandboxRefuses"},
		{"container_port", plugins, "unchanged", "network.TestAttachPassesDeclaredCapabilities network.TestRealHostPortIsForwarded"},
		{"host_port", plugins, "unchanged; a mapping without a host port has no effect", "network.TestAttachPassesDeclaredCapabilities network.TestRealHostPortIsForwarded"},
		{"host_ip", plugins, "unchanged", "network.TestAttachPassesDeclaredCapabilities"},
	}},
	{"LinuxPodSandboxConfig", []row{
		{"cgroup_parent", engine, "`HostConfig.CgroupParent` of the pause container and of all containers of the pod; with the systemd driver the name of the slice", "live.TestResourcesInTheCgroup todocker.TestSandboxVariants todocker.TestSandboxRefuses"},
		{"security_context", engine, "see its fields", "todocker.TestSandboxVariants"},
		{"sysctls", engine, "`HostConfig.Sysctls` of the pause container, whose namespaces the containers join; for a pod with its own network also the node's `net.ipv6.conf.{all,default}.disable_ipv6`, unless the pod sets them", "live.TestNamespacesOfPods e2e.TestCRI live.TestIPv6AsTheNodeHasIt"},
		{"overhead", store, "returned in the verbose status; the kubelet itself sets the cgroup of the pod", "live.TestUpdateContainerResources"},
		{"resources", store, "returned in the verbose status; the kubelet itself sets the cgroup of the pod", "live.TestUpdateContainerResources"},
	}},
	{"LinuxSandboxSecurityContext", []row{
		{"namespace_options", engine, "see its fields", "todocker.TestSandboxVariants"},
		{"selinux_options", engine, "`HostConfig.SecurityOpt` of the pause container; containers without options get the same label", "todocker.TestSecurityOptions"},
		{"run_as_user", engine, "`Config.User` of the pause container", "todocker.TestSandboxVariants live.TestPauseProcessSettings"},
		{"run_as_group", engine, "`Config.User` of the pause container; without a user the user of the image is kept", "todocker.TestSandboxVariants live.TestPauseProcessSettings live.TestUnusualPods"},
		{"readonly_rootfs", engine, "`HostConfig.ReadonlyRootfs` of the pause container", "todocker.TestSandboxVariants live.TestPauseProcessSettings"},
		{"supplemental_groups", engine, "`HostConfig.GroupAdd` of the pause container", "todocker.TestSandboxVariants live.TestPauseProcessSettings"},
		{"supplemental_groups_policy", engine, "`Config.User` of the pause container: with Strict it contains a group, so that Docker adds no groups of the image", "todocker.TestSandboxVariants todocker.TestSandboxRefuses"},
		{"privileged", berth, "allows privileged containers in the pod, for which its sysfs is writable (Linux 5.2); the pause process itself is never privileged", "todocker.TestPrivileged live.TestPrivilegedPodHasAWritableSys"},
		{"seccomp", engine, "`HostConfig.SecurityOpt` of the pause container; RuntimeDefault, which a kubelet always requests, is omitted if Docker has no seccomp", "todocker.TestSandboxVariants todocker.TestSecurityOptions live.TestPauseProcessSettings"},
		{"apparmor", engine, "`HostConfig.SecurityOpt` of the pause container", "todocker.TestSecurityOptions"},
		{"seccomp_profile_path", engine, "as `seccomp`, if that is not set", "todocker.TestSecurityOptions"},
	}},
	{"NamespaceOption", []row{
		{"network", engine, "`HostConfig.NetworkMode`: POD is a namespace that the plugins set up and containers join, NODE the node's; other values are refused, and so is NODE in a pod that has its own network", "todocker.TestSandboxVariants todocker.TestContainer live.TestNamespacesOfPods"},
		{"pid", engine, "`HostConfig.PidMode`: the namespace of the pause container, a private one, the node's, or that of the target", "todocker.TestContainer live.TestNamespacesOfPods"},
		{"ipc", engine, "`HostConfig.IpcMode`", "todocker.TestContainer live.TestNamespacesOfPods"},
		{"target_id", engine, "`HostConfig.PidMode`; refused if it is not a running container of the same pod", "container.TestCreateRefusesInvalidRequests live.TestNamespacesOfPods"},
		{"userns_options", files, "with berth's OCI runtime, which Docker runs only for such pods: instructions in `<run-dir>/oci`; without it refused, with the command that installs it; a container must have those of its sandbox", "sandbox.TestPodWithUserNamespaceFromRunToRemove sandbox.TestPodWithUserNamespaceNeedsTheRuntime container.TestContainersThatDoNotFitTheirPodAreRefused userns.TestUserNamespacesThatAreRefused live.TestUserNamespaceOfAPod"},
	}},
	{"UserNamespace", []row{
		{"mode", files, "POD with berth's OCI runtime, NODE; others are refused", "userns.TestUserNamespacesThatAreRefused userns.TestMappingsOfPods"},
		{"uids", files, "one mapping from ID 0 on, as in containerd and CRI-O; others are refused, and so is each in the node's user namespace", "userns.TestUserNamespacesThatAreRefused live.TestUserNamespaceOfAPod"},
		{"gids", files, "as `uids`", "userns.TestUserNamespacesThatAreRefused"},
	}},
	{"IDMapping", []row{
		{"*", files, "as the user namespace or the mount that contains them", "userns.TestMappingsOfPods userns.TestMountsOfAContainer"},
	}},
	{"SELinuxOption", []row{
		{"user", engine, "`label=user:` in `HostConfig.SecurityOpt`", "todocker.TestSecurityOptions"},
		{"role", engine, "`label=role:` in `HostConfig.SecurityOpt`", "todocker.TestSecurityOptions"},
		{"type", engine, "`label=type:` in `HostConfig.SecurityOpt`", "todocker.TestSecurityOptions"},
		{"level", engine, "`label=level:` in `HostConfig.SecurityOpt`; with other parts but no level, the level of the pod", "todocker.TestSecurityOptions"},
	}},
	{"Int64Value", []row{
		{"value", engine, "see the field that contains it", "todocker.TestContainer"},
	}},
	{"SecurityProfile", []row{
		{"profile_type", engine, "`seccomp=` and `apparmor=` in `HostConfig.SecurityOpt`; RuntimeDefault of a container is refused if Docker cannot enforce it", "todocker.TestSecurityOptions todocker.TestProfilesThatDockerCannotApplyAreRefused e2e.TestCRI"},
		{"localhost_ref", engine, "seccomp: the content of the file, refused if it is not a profile; AppArmor: the name of a loaded profile or of a stack of loaded profiles; other names, `unconfined`, names of another namespace, and any name without AppArmor are refused", "todocker.TestSecurityOptions todocker.TestContainerRefuses securityprofile.TestLoadRequiresLoadedProfiles securityprofile.TestLoadRefusesFilesThatAreNotAProfile e2e.TestCRI todocker.TestAppArmorLocalhostCannotBeUnconfined"},
	}},
	{"LinuxContainerResources", []row{
		{"cpu_period", engine, "`HostConfig.CpuPeriod`", "live.TestUpdateContainerResources live.TestResourcesInTheCgroup"},
		{"cpu_quota", engine, "`HostConfig.CpuQuota`", "live.TestUpdateContainerResources live.TestResourcesInTheCgroup"},
		{"cpu_shares", engine, "`HostConfig.CpuShares`", "live.TestUpdateContainerResources live.TestResourcesInTheCgroup"},
		{"memory_limit_in_bytes", engine, "`HostConfig.Memory`; a limit below 6 MiB, which Docker refuses, is written to the cgroup", "live.TestUpdateContainerResources limits.TestCgroupSettings live.TestResourcesInTheCgroup"},
		{"oom_score_adj", engine, "`HostConfig.OomScoreAdj`, but not lower than the Engine may set; changes are written to /proc", "live.TestUpdateContainerResources todocker.TestSandboxVariants live.TestResourcesInTheCgroup"},
		{"cpuset_cpus", engine, "`HostConfig.CpusetCpus`", "live.TestUpdateContainerResources live.TestResourcesInTheCgroup"},
		{"cpuset_mems", engine, "`HostConfig.CpusetMems`", "limits.TestUpdateContainer live.TestResourcesInTheCgroup"},
		{"hugepage_limits", cgroup, "`hugetlb.SIZE.max` or `.limit_in_bytes`, and their `.rsvd.` variants if the kernel has them; with the cgroup driver systemd limits above 0 hold from the first instruction with berth's OCI runtime", "specedit.TestCgroupSettingsBeforeTheFirstInstruction limits.TestCgroupSettings live.TestResourcesInTheCgroup live.TestSettingsSurviveDaemonReload"},
		{"unified", cgroup, "the files that it names, and the matching systemd properties if systemd manages the cgroup, there from the first instruction on with berth's OCI runtime; refused on cgroup v1", "specedit.TestCgroupSettingsBeforeTheFirstInstruction live.TestSettingsHoldFromTheFirstInstruction limits.TestCgroupSettings todocker.TestContainerRefuses live.TestResourcesInTheCgroup live.TestSettingsSurviveDaemonReload"},
		{"memory_swap_limit_in_bytes", engine, "`HostConfig.MemorySwap`, no swap if it is unset; with a memory limit below 6 MiB, written to the cgroup", "live.TestResourcesInTheCgroup live.TestUpdateContainerResources todocker.TestContainer limits.TestCgroupSettings limits.TestUpdateContainer"},
	}},
	{"HugepageLimit", []row{
		{"page_size", cgroup, "part of the file name", "limits.TestCgroupSettings live.TestResourcesInTheCgroup"},
		{"limit", cgroup, "the value written; a limit of 0 does not require the file", "limits.TestCgroupSettings live.TestResourcesInTheCgroup live.TestSettingsHoldFromTheFirstInstruction"},
	}},
	{"WindowsPodSandboxConfig", []row{{"*", refused, windows, "todocker.TestSandboxRefuses"}}},
	{"WindowsSandboxSecurityContext", []row{{"*", refused, windows, "todocker.TestSandboxRefuses"}}},
	{"WindowsNamespaceOption", []row{{"*", refused, windows, "todocker.TestSandboxRefuses"}}},
	{"RunPodSandboxResponse", []row{
		{"pod_sandbox_id", engine, "the ID of the pause container", "live.TestPodRunsAndIsRemoved"},
	}},
	{"StopPodSandboxRequest", []row{
		{"pod_sandbox_id", berth, "found by the ID or a prefix of it", "live.TestPodRunsAndIsRemoved sandbox.TestSandboxFromRunToRemove"},
	}},
	{"RemovePodSandboxRequest", []row{
		{"pod_sandbox_id", berth, "found by the ID or a prefix of it", "live.TestPodRunsAndIsRemoved sandbox.TestSandboxFromRunToRemove"},
	}},
	{"PodSandboxStatusRequest", []row{
		{"pod_sandbox_id", berth, "found by the ID or a prefix of it", "live.TestPodRunsAndIsRemoved"},
		{"verbose", berth, "adds `info`", "live.TestUpdateContainerResources"},
	}},
	{"PodSandboxStatusResponse", []row{
		{"status", berth, "from the cache, which events keep up to date", "live.TestPodRunsAndIsRemoved"},
		{"info", berth, "with verbose, under the key that crictl reads: the PID, the config, the runtime, `runtimeSpec` while it runs, and Docker's HostConfig", "live.TestVerboseStatusHasSpecAndHostConfig"},
		{"containers_statuses", berth, "the statuses of all containers of the pod", "live.TestPodSettingsReachTheContainer"},
		{"timestamp", nothing, "never set: with it a kubelet 1.37 with the gate EventedPLEG considers no container active, and restarts sidecars repeatedly", "server.TestPodRunsAndIsRemoved"},
	}},
	{"PodSandboxStatus", []row{
		{"id", engine, "the ID of the pause container", "live.TestPodRunsAndIsRemoved"},
		{"metadata", store, "the label `berth.config`; for a pod that cri-dockerd created, the container's name", "tocri.TestSandbox live.TestTakeoverOfCRIDockerdPods"},
		{"state", berth, "READY while the pause process runs and the network is attached", "tocri.TestSandbox"},
		{"created_at", engine, "`Created`", "live.TestPodSettingsReachTheContainer"},
		{"network", plugins, "see its fields", "live.TestPodRunsAndIsRemoved"},
		{"linux", store, "see its fields", "tocri.TestSandbox"},
		{"labels", store, "as sent", "live.TestPodRunsAndIsRemoved labels.FuzzRoundTrip"},
		{"annotations", store, "as sent", "live.TestPodRunsAndIsRemoved labels.FuzzRoundTrip"},
		{"runtime_handler", store, "the label `berth.handler`", "tocri.TestSandbox"},
	}},
	{"PodSandboxNetworkStatus", []row{
		{"ip", plugins, "the first address of eth0; empty on the node's network", "live.TestPodRunsAndIsRemoved tocri.TestSandbox"},
		{"additional_ips", plugins, "the other addresses of eth0", "live.TestPodRunsAndIsRemoved"},
	}},
	{"PodIP", []row{
		{"ip", plugins, "an address", "live.TestPodRunsAndIsRemoved"},
	}},
	{"LinuxPodSandboxStatus", []row{
		{"namespaces", store, "see its field", "tocri.TestSandbox"},
	}},
	{"Namespace", []row{
		{"options", store, "as sent; for a pod that cri-dockerd created, from `HostConfig`", "tocri.TestSandbox live.TestTakeoverOfCRIDockerdPods"},
	}},
	{"ContainerStatus", []row{
		{"id", engine, "the ID of the Docker container", "live.TestPodRunsAndIsRemoved"},
		{"metadata", store, "the label `berth.config`; for a container that cri-dockerd created, its name", "tocri.TestContainerOfCRIDockerd live.TestTakeoverOfCRIDockerdPods"},
		{"state", engine, "`State`", "tocri.TestContainerState"},
		{"created_at", engine, "`Created`", "tocri.TestFailedStartFinishesWhenItFailed"},
		{"started_at", engine, "`State.StartedAt`; 0 before a start and after a failed start", "tocri.TestFailedStartFinishesWhenItFailed"},
		{"finished_at", engine, "`State.FinishedAt`; for a failed start, from the state directory", "tocri.TestFailedStartFinishesWhenItFailed live.TestFailedStartIsReportedAsStartError"},
		{"exit_code", engine, "`State.ExitCode`; 128 for a failed start without an exit code", "tocri.TestFailedStartFinishesWhenItFailed live.TestFailedStartIsReportedAsStartError"},
		{"image", store, "see ImageSpec", "tocri.TestFailedStartFinishesWhenItFailed"},
		{"image_ref", store, "the image's digest in the repository that the user specified, or the ID", "image.TestRepoDigest tocri.TestFailedStartFinishesWhenItFailed"},
		{"reason", engine, "Completed, Error or StartError, from `State`; OOMKilled according to the kernel's count of OOM kills in the container's cgroup", "tocri.TestContainerState oom.TestOOMKilledDependsOnKillsAndEvents oom.TestKernelKills live.TestOOMKilledIfAndOnlyIfTheKernelKilled"},
		{"message", engine, "`State.Error`", "live.TestFailedStartIsReportedAsStartError"},
		{"labels", store, "as sent", "labels.FuzzRoundTrip"},
		{"annotations", store, "as sent", "labels.FuzzRoundTrip"},
		{"mounts", store, "as sent, without others", "live.TestMounts"},
		{"log_path", store, "log_directory and log_path", "todocker.TestContainer"},
		{"resources", store, "the values from creation with later updates", "live.TestUpdateContainerResources"},
		{"image_id", engine, "`Image`, the same ID as in ListImages", "image.TestImageHasTheSameIDInAllResponses tocri.TestFailedStartFinishesWhenItFailed"},
		{"user", store, "the label `berth.user`, as determined at creation", "identity.TestForContainer e2e.TestCRI"},
		{"stop_signal", engine, "`Config.StopSignal`, or that of the image if none was sent, by name or number", "tocri.TestStopSignal live.TestUnusualPods"},
	}},
	{"ContainerMetadata", []row{
		{"name", store, "the name of the Docker container; refused if empty", "todocker.TestContainer todocker.TestContainerRefuses"},
		{"attempt", store, "the name of the Docker container", "todocker.TestContainer"},
	}},
	{"ImageSpec", []row{
		{"image", engine, "a tag, a digest or an ID; also for a mounted image", "image.TestImageHasTheSameIDInAllResponses live.TestMounts"},
		{"annotations", store, "returned in the status of a container; they do not select another image, because Docker pulls the image of the node's platform", "tocri.TestContainerImage live.TestPodSettingsReachTheContainer"},
		{"user_specified_image", store, "the label `berth.image`; the name of the image in statuses, and the name for which they report the digest", "tocri.TestFailedStartFinishesWhenItFailed image.TestRepoDigest"},
		{"runtime_handler", store, "returned in the status of a container; a handler that Docker does not have is refused. Images are the same for all handlers", "tocri.TestContainerImage todocker.TestContainerRefuses image.TestPullFails"},
		{"image_ref", store, "only in statuses: the digest of a mounted image", "todocker.TestContainer"},
	}},
	{"Mount", []row{
		{"container_path", engine, "`Target` of `HostConfig.Mounts`; refused if it is empty; of several mounts at one path the last one is used", "todocker.TestMounts todocker.TestLastMountAtAPathIsUsed live.TestMounts live.TestUnusualPods"},
		{"host_path", engine, "`Source` of `HostConfig.Mounts`; created as a directory if it does not exist, as containerd does", "todocker.TestMounts e2e.TestCRI"},
		{"readonly", engine, "`ReadOnly`, and from 25 on `ReadOnlyNonRecursive`", "live.TestMounts"},
		{"selinux_relabel", files, "on a node with SELinux the files get the container's label, not shared with other pods, as with `:Z`; for an unconfined container, the pod's label", "relabel.TestSetLabelsRelabelsMarkedMounts"},
		{"propagation", engine, "`BindOptions.Propagation`, or the propagation of the premount; refused if the mount that contains the host path does not propagate", "live.TestMountPropagation todocker.TestMounts premount.TestRemoveKeepsTheMountsOfASharedSource premount.TestCheckPropagationRefusesMountsThatAreNotShared e2e.TestCRI"},
		{"uidMappings", files, "in a pod with a user namespace: instructions for berth's OCI runtime; else refused. Mounts without mappings stay as they are", "container.TestContainerInAUserNamespaceFromCreateToRemove userns.TestMountsOfAContainer live.TestUserNamespaceOfAPod"},
		{"gidMappings", files, "as `uidMappings`", "container.TestContainerInAUserNamespaceFromCreateToRemove userns.TestMountsOfAContainer"},
		{"recursive_read_only", engine, "`ReadOnlyForceRecursive`; before 25 a premount", "live.TestMounts todocker.TestMounts"},
		{"image", engine, "a mount of `Type` image; before 28 a premount: an overlay of the image's layers", "live.TestMounts todocker.TestMounts"},
		{"image_sub_path", engine, "`ImageOptions.Subpath`, or a sub-path of the premount; refused if it leads out of the image or does not exist, which is checked with Docker after the container is created", "live.TestMounts todocker.TestMounts container.TestCreateRefusesAMissingSubPathOfAnImage premount.TestCreateMountsTheFilesOfAnImage"},
		{"mount_options", mount, "a premount; noexec, nosuid, nodev, nosymfollow and ro are accepted, other options are refused", "live.TestMounts premount.TestCheckAcceptsOnlyRestrictions"},
	}},
	{"ContainerResources", []row{
		{"linux", store, "the values from creation with later updates", "live.TestUpdateContainerResources"},
		{"windows", nothing, windows, ""},
	}},
	{"WindowsContainerResources", []row{{"*", refused, windows, "todocker.TestCheckUpdate"}}},
	{"WindowsCpuGroupAffinity", []row{{"*", refused, windows, "todocker.TestCheckUpdate"}}},
	{"ContainerUser", []row{
		{"linux", store, "see its fields", "identity.TestForContainer"},
	}},
	{"LinuxContainerUser", []row{
		{"uid", store, "from the request and the image's files", "identity.TestForContainer e2e.TestCRI"},
		{"gid", store, "from the request and the image's files", "identity.TestForContainer e2e.TestCRI"},
		{"supplemental_groups", store, "from the request and the image's files, with the primary group", "identity.TestForContainer e2e.TestCRI"},
	}},
	{"ListPodSandboxRequest", []row{
		{"filter", berth, "see its fields", "cache.TestFilters"},
	}},
	{"PodSandboxFilter", []row{
		{"id", berth, "the ID or a prefix of it", "cache.TestFilters"},
		{"state", berth, "see its field", "cache.TestFilters"},
		{"label_selector", berth, "pairs that must all match", "cache.TestFilters"},
	}},
	{"PodSandboxStateValue", []row{
		{"state", berth, "must be equal", "cache.TestFilters"},
	}},
	{"ListPodSandboxResponse", []row{
		{"items", berth, "from the cache, which events keep up to date; the newest first", "live.TestListsMakeNoEngineCalls server.TestListsNeverContradictTheCaller"},
	}},
	{"PodSandbox", []row{
		{"id", engine, "as in PodSandboxStatus", "server.TestListsNeverContradictTheCaller"},
		{"metadata", store, "as in PodSandboxStatus", "tocri.TestSandbox"},
		{"state", berth, "as in PodSandboxStatus", "tocri.TestSandbox"},
		{"created_at", engine, "as in PodSandboxStatus", "live.TestPodSettingsReachTheContainer"},
		{"labels", store, "as in PodSandboxStatus; labels other than the kubelet's own are omitted if a list would exceed one message", "labels.FuzzRoundTrip live.TestPodSettingsReachTheContainer server.TestEveryResponseFitsIntoAMessage"},
		{"annotations", store, "as in PodSandboxStatus; omitted, first from ended and old rows, if a list would exceed one message", "labels.FuzzRoundTrip live.TestPodSettingsReachTheContainer server.TestEveryResponseFitsIntoAMessage"},
		{"runtime_handler", store, "as in PodSandboxStatus", "live.TestPodSettingsReachTheContainer"},
	}},
	{"StreamPodSandboxesRequest", []row{
		{"filter", berth, "as in ListPodSandboxRequest", "cache.TestFilters"},
	}},
	{"StreamPodSandboxesResponse", []row{
		{"pod_sandboxes", berth, "as ListPodSandboxResponse, in pieces", "server.TestChunksHoldAllRowsInOrder"},
	}},
	{"CreateContainerRequest", []row{
		{"pod_sandbox_id", engine, "found by the ID or a prefix of it; the pod must be ready", "container.TestCreateRefusesInvalidRequests"},
		{"config", engine, "a Docker container, created from the fields of the message", "live.TestPodRunsAndIsRemoved"},
		{"sandbox_config", berth, "ignored, because the config of RunPodSandbox applies; used for a pod that cri-dockerd created", "live.TestTakeoverOfCRIDockerdPods"},
	}},
	{"ContainerConfig", []row{
		{"metadata", store, "see its fields", "todocker.TestContainer"},
		{"image", engine, "`Config.Image`, by ID", "container.TestCreateRefusesInvalidRequests image.TestImageHasTheSameIDInAllResponses"},
		{"command", engine, "`Config.Entrypoint`", "live.TestPodRunsAndIsRemoved todocker.TestContainerRefuses"},
		{"args", engine, "`Config.Cmd`", "live.TestProcessSettingsInTheContainer"},
		{"working_dir", engine, "`Config.WorkingDir`", "live.TestProcessSettingsInTheContainer"},
		{"envs", engine, "`Config.Env`; refused if a value is not UTF-8", "todocker.TestContainer todocker.TestContainerRefuses live.TestProcessSettingsInTheContainer"},
		{"mounts", engine, "see Mount", "live.TestMounts"},
		{"devices", engine, "`HostConfig.Devices`; a privileged container has all devices, and in addition those with another name; with berth's OCI runtime `device-ownership-from-security-context` and `privileged-without-host-devices` change that", "live.TestDevicesInTheContainer todocker.TestPrivileged live.TestDevicesBelongToTheUserOfTheContainer live.TestPrivilegedContainerWithoutDevicesOfTheNode"},
		{"labels", store, "labels of the Docker container", "labels.FuzzRoundTrip"},
		{"annotations", store, "labels of the Docker container, with cri-dockerd's prefix; `io.kubernetes.pod.terminationGracePeriod` also sets `Config.StopTimeout` and the timeout of the systemd scope; those of `oci-annotations` are `HostConfig.Annotations`, from Docker 24 on; `cdi.k8s.io/...` request CDI devices, unless `cdi-annotations` is false", "live.TestAnnotationsReachTheRuntime labels.FuzzRoundTrip todocker.TestGracePeriodAtShutdown live.TestUnusualPods cdi.TestNamesAreThoseOfTheFieldAndOfAnnotationsOnce"},
		{"log_path", berth, "the path of its log; refused if it leads out of log_directory, or if something other than a regular file exists there", "live.TestPodRunsAndIsRemoved live.TestLogPathMustBeARegularFile todocker.TestContainerRefuses"},
		{"stdin", engine, "`Config.OpenStdin`", "e2e.TestCRI live.TestProcessSettingsInTheContainer"},
		{"stdin_once", engine, "`Config.StdinOnce`", "e2e.TestCRI live.TestProcessSettingsInTheContainer"},
		{"tty", engine, "`Config.Tty`", "e2e.TestCRI live.TestProcessSettingsInTheContainer"},
		{"linux", engine, "see its fields", "todocker.TestContainer"},
		{"windows", refused, "unless it is empty: berth runs on Linux", "todocker.TestContainerRefuses"},
		{"CDI_devices", engine, "`HostConfig.DeviceRequests`; for an Engine without CDI the specifications are read, and their device nodes, variables, mounts and groups set; hooks and nodes that differ from the host's need berth's OCI runtime; what else the Engine API cannot express is refused", "live.TestCDIDevicesWithTheOCIRuntime cdi.TestResolveForTheOCIRuntime live.TestCDIDevicesAreInTheContainer todocker.TestContainer cdi.TestResolveTranslatesEdits cdi.TestResolveRefusesWhatTheEngineAPICannotExpress"},
		{"stop_signal", engine, "`Config.StopSignal`; if unset, that of the image", "todocker.TestEverySignalHasAName live.TestProcessSettingsInTheContainer"},
	}},
	{"KeyValue", []row{
		{"key", engine, "`Config.Env`; refused if it is empty or contains `=`", "todocker.TestContainerRefuses live.TestProcessSettingsInTheContainer"},
		{"value", engine, "`Config.Env`; refused if it is not UTF-8, because the Engine API uses JSON", "todocker.TestContainerRefuses live.TestProcessSettingsInTheContainer"},
	}},
	{"Device", []row{
		{"container_path", engine, "`HostConfig.Devices`", "live.TestDevicesInTheContainer"},
		{"host_path", engine, "`HostConfig.Devices`", "live.TestDevicesInTheContainer"},
		{"permissions", engine, "`HostConfig.Devices`; all if none are set; refused if it contains others than r, w and m", "live.TestDevicesInTheContainer todocker.TestContainer todocker.TestContainerRefuses"},
	}},
	{"LinuxContainerConfig", []row{
		{"resources", engine, "see its fields", "live.TestUpdateContainerResources"},
		{"security_context", engine, "see its fields", "todocker.TestContainer"},
	}},
	{"LinuxContainerSecurityContext", []row{
		{"capabilities", engine, "see its fields; a privileged container has all capabilities", "todocker.TestContainer e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"privileged", engine, "`HostConfig.Privileged`; refused in a pod that does not allow privileged containers", "todocker.TestPrivileged e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"namespace_options", engine, "see its fields", "todocker.TestContainer"},
		{"selinux_options", engine, "`HostConfig.SecurityOpt`", "todocker.TestSecurityOptions"},
		{"run_as_user", engine, "`Config.User`", "identity.TestForContainer e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"run_as_group", engine, "`Config.User`; refused without a user", "identity.TestForContainer todocker.TestContainerRefuses e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"run_as_username", engine, "`Config.User`", "identity.TestForContainer e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"readonly_rootfs", engine, "`HostConfig.ReadonlyRootfs`", "e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"supplemental_groups", engine, "`HostConfig.GroupAdd`", "identity.TestForContainer e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"supplemental_groups_policy", engine, "`HostConfig.GroupAdd`: Merge adds the groups of the image's own files, Strict does not; an identity that cannot be found there is refused", "identity.TestForContainer identity.TestForContainerRefuses e2e.TestCRI live.TestStatusReportsTheUserThatRuns"},
		{"no_new_privs", engine, "`no-new-privileges=` in `HostConfig.SecurityOpt`, set for true and false", "todocker.TestContainer e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"masked_paths", engine, "`HostConfig.MaskedPaths`: an empty list masks nothing; a privileged container has none", "todocker.TestContainer todocker.TestPrivileged e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"readonly_paths", engine, "`HostConfig.ReadonlyPaths`: an empty list makes nothing read-only; a privileged container has none", "todocker.TestContainer todocker.TestPrivileged e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"seccomp", engine, "`HostConfig.SecurityOpt`; Unconfined if unset, and for a privileged container", "todocker.TestSecurityOptions e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"apparmor", engine, "`HostConfig.SecurityOpt`", "todocker.TestSecurityOptions"},
		{"apparmor_profile", engine, "as `apparmor`, if that is not set", "todocker.TestSecurityOptions"},
		{"seccomp_profile_path", engine, "as `seccomp`, if that is not set", "todocker.TestSecurityOptions live.TestSecurityContextInTheContainer"},
	}},
	{"Capability", []row{
		{"add_capabilities", engine, "`HostConfig.CapAdd`; a capability that is also dropped is not added", "todocker.TestContainer e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"drop_capabilities", engine, "`HostConfig.CapDrop`", "todocker.TestContainer e2e.TestCRI live.TestSecurityContextInTheContainer"},
		{"add_ambient_capabilities", files, "with berth's OCI runtime, for processes of an exec too: instructions in `<run-dir>/oci`, and `HostConfig.CapAdd`; without it refused, with the command that installs it; one that is also dropped is not added", "specedit.TestCapabilities specedit.TestInstructionsOfContainers container.TestContainerThatNeedsTheOCIRuntimeInAPodWithout todocker.TestContainerRefuses live.TestAmbientCapabilities"},
	}},
	{"WindowsContainerConfig", []row{{"*", refused, windows, "todocker.TestContainerRefuses"}}},
	{"WindowsContainerSecurityContext", []row{{"*", refused, windows, "todocker.TestContainerRefuses"}}},
	{"CDIDevice", []row{
		{"name", engine, "`HostConfig.DeviceRequests`; see CDI_devices", "todocker.TestContainer cdi.TestUnresolvableDeviceNamesDirectoriesAndInvalidFiles"},
	}},
	{"CreateContainerResponse", []row{
		{"container_id", engine, "the ID of the Docker container", "live.TestPodRunsAndIsRemoved"},
	}},
	{"StartContainerRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it", "live.TestPodRunsAndIsRemoved"},
	}},
	{"StopContainerRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it; a missing container is not an error", "container.TestStopHonorsTheShortestGracePeriod"},
		{"timeout", engine, "the grace period of the stop; with 0 the container is killed", "container.TestStopHonorsTheShortestGracePeriod e2e.TestCRI"},
	}},
	{"RemoveContainerRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it; a missing container is not an error", "container.TestParallelRemovesSucceed"},
	}},
	{"ListContainersRequest", []row{
		{"filter", berth, "see its fields", "cache.TestFilters"},
	}},
	{"ContainerFilter", []row{
		{"id", berth, "the ID or a prefix of it", "cache.TestFilters"},
		{"state", berth, "see its field", "cache.TestFilters"},
		{"pod_sandbox_id", berth, "the ID or a prefix of it", "cache.TestFilters"},
		{"label_selector", berth, "pairs that must all match", "cache.TestFilters"},
	}},
	{"ContainerStateValue", []row{
		{"state", berth, "must be equal", "cache.TestFilters"},
	}},
	{"ListContainersResponse", []row{
		{"containers", berth, "from the cache, which events keep up to date; the newest first", "live.TestListsMakeNoEngineCalls server.TestListsNeverContradictTheCaller"},
	}},
	{"Container", []row{
		{"id", engine, "as in ContainerStatus", "server.TestListsNeverContradictTheCaller"},
		{"pod_sandbox_id", store, "cri-dockerd's label", "tocri.TestContainerOfCRIDockerd"},
		{"metadata", store, "as in ContainerStatus", "tocri.TestContainerOfCRIDockerd"},
		{"image", store, "as in ContainerStatus", "tocri.TestContainerImage"},
		{"image_ref", store, "as in ContainerStatus", "tocri.TestContainerImage"},
		{"state", engine, "as in ContainerStatus", "server.TestListsNeverContradictTheCaller"},
		{"created_at", engine, "as in ContainerStatus", "live.TestPodSettingsReachTheContainer"},
		{"labels", store, "as in ContainerStatus; labels other than the kubelet's own are omitted if a list would exceed one message", "live.TestPodSettingsReachTheContainer server.TestEveryResponseFitsIntoAMessage"},
		{"annotations", store, "as in ContainerStatus; omitted, first from ended and old rows, if a list would exceed one message", "live.TestPodSettingsReachTheContainer server.TestEveryResponseFitsIntoAMessage"},
		{"image_id", engine, "as in ContainerStatus", "tocri.TestContainerImage"},
	}},
	{"StreamContainersRequest", []row{
		{"filter", berth, "as in ListContainersRequest", "cache.TestFilters"},
	}},
	{"StreamContainersResponse", []row{
		{"containers", berth, "as ListContainersResponse, in pieces", "server.TestChunksHoldAllRowsInOrder"},
	}},
	{"ContainerStatusRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it", "live.TestPodRunsAndIsRemoved"},
		{"verbose", berth, "adds `info`", "live.TestPodSettingsReachTheContainer"},
	}},
	{"ContainerStatusResponse", []row{
		{"status", berth, "from the cache, which events keep up to date", "live.TestFailedStartIsReportedAsStartError"},
		{"info", berth, "with verbose, under the key that crictl reads: the sandbox, the PID, `runtimeSpec` while it runs, and Docker's HostConfig", "live.TestVerboseStatusHasSpecAndHostConfig"},
	}},
	{"UpdateContainerResourcesRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it", "live.TestUpdateContainerResources"},
		{"linux", engine, "see its fields; unset fields stay unchanged", "live.TestUpdateContainerResources limits.TestUpdateContainer"},
		{"windows", refused, "unless it is empty: berth runs on Linux", "todocker.TestCheckUpdate"},
		{"annotations", refused, "berth supports no annotation that changes a container", "todocker.TestCheckUpdate"},
	}},
	{"ReopenContainerLogRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it; it must be running", "logs.TestReopenBeginsNewFile e2e.TestCRI"},
	}},
	{"ExecSyncRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it; it must be running", "exec.TestSyncReturnsOutputAndExitCode"},
		{"cmd", engine, "`Cmd` of an exec; refused if empty", "exec.TestSyncReturnsOutputAndExitCode"},
		{"timeout", berth, "on expiry the command is killed with all processes that it started; a command that has ended returns its exit code, even if a child keeps its output open; if Docker does not respond in that time, the call is Unavailable", "live.TestExecTimeoutKillsTheCommand exec.TestSyncReturnsAtTimeoutOrCancellation live.TestExecLeavesNoZombies live.TestExecWithBackgroundChildReturnsAtOnce server.TestExecSyncDistinguishesCommandTimeoutFromHungDocker live.TestHungDockerFailsNoProbe"},
	}},
	{"ExecSyncResponse", []row{
		{"stdout", engine, "the output of the exec, truncated to 16 MiB together with stderr", "exec.TestSyncReturnsOutputAndExitCode"},
		{"stderr", engine, "the output of the exec, truncated to 16 MiB together with stdout", "exec.TestSyncReturnsOutputAndExitCode"},
		{"exit_code", engine, "`ExitCode` of the exec; 126 or 127 for a command that cannot be run, with the reason in the output", "exec.TestSyncReturnsOutputAndExitCode live.TestExecOfInvalidCommandExits126Or127"},
	}},
	{"ExecRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it; it must be running", "e2e.TestCRI"},
		{"cmd", engine, "`Cmd` of an exec", "e2e.TestCRI"},
		{"tty", engine, "`Tty` of an exec", "e2e.TestCRI"},
		{"stdin", engine, "`AttachStdin` of an exec", "e2e.TestCRI"},
		{"stdout", engine, "`AttachStdout` of an exec", "e2e.TestCRI"},
		{"stderr", engine, "`AttachStderr` of an exec", "e2e.TestCRI"},
	}},
	{"ExecResponse", []row{
		{"url", berth, "the URL of the streaming server, valid for one use and one minute", "streaming.TestURLsAreAbsoluteAndCanBeDialled"},
	}},
	{"AttachRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it; it must be running", "e2e.TestCRI"},
		{"stdin", engine, "`Stdin` of an attach", "e2e.TestCRI"},
		{"tty", berth, "how the client's streams are combined; the container's own streams are set at creation", "e2e.TestCRI"},
		{"stdout", engine, "`Stdout` of an attach", "e2e.TestCRI"},
		{"stderr", engine, "`Stderr` of an attach", "e2e.TestCRI"},
	}},
	{"AttachResponse", []row{
		{"url", berth, "the URL of the streaming server, valid for one use and one minute", "streaming.TestURLsAreAbsoluteAndCanBeDialled"},
	}},
	{"PortForwardRequest", []row{
		{"pod_sandbox_id", berth, "found by the ID or a prefix of it; it must be ready", "e2e.TestCRI"},
		{"port", berth, "the ports for a WebSocket client that names none; SPDY clients name them in their streams", "streaming.TestPortForwardThroughWebSocket e2e.TestCRI"},
	}},
	{"PortForwardResponse", []row{
		{"url", berth, "the URL of the streaming server, valid for one use and one minute", "streaming.TestURLsAreAbsoluteAndCanBeDialled"},
	}},
	{"ContainerStatsRequest", []row{
		{"container_id", berth, "found by the ID or a prefix of it", "live.TestStatsMatchTheKernel"},
	}},
	{"ContainerStatsResponse", []row{
		{"stats", cgroup, "see its fields", "live.TestStatsMatchTheKernel"},
	}},
	{"ContainerStats", []row{
		{"attributes", berth, "see its fields", "live.TestStatsMatchTheKernel"},
		{"cpu", cgroup, "see its fields; unset for a container that is not running", "live.TestStatsMatchTheKernel"},
		{"memory", cgroup, "see its fields; unset for a container that is not running", "live.TestStatsMatchTheKernel"},
		{"writable_layer", berth, "see FilesystemUsage; unset before the first measurement", "live.TestStatsMatchTheKernel stats.TestNoWritableLayerBeforeTheFirstMeasurement"},
		{"swap", cgroup, "see its fields", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2"},
		{"io", cgroup, "see its fields; on v2", "stats.TestStatsOfCgroupV2"},
	}},
	{"ContainerAttributes", []row{
		{"*", berth, "as in Container", "live.TestStatsMatchTheKernel"},
	}},
	{"CpuUsage", []row{
		{"timestamp", berth, "when the files were read", "live.TestStatsMatchTheKernel"},
		{"usage_core_nano_seconds", cgroup, "`cpuacct.usage`, or `cpu.stat`", "cgroupstats.TestCPUTimeIsInNanoseconds live.TestStatsMatchTheKernel"},
		{"usage_nano_cores", berth, "the rate over a second or more, from the second reading on; berth reads the counter every 10 s", "stats.TestUpdateRate stats.TestSampleGivesRatesOfPodsAndContainers"},
		{"psi", cgroup, "`cpu.pressure` on v2", "cgroup.TestReadsNumbersAndPressure"},
	}},
	{"UInt64Value", []row{
		{"value", berth, "see the field that contains it", "live.TestStatsMatchTheKernel"},
	}},
	{"PsiStats", []row{
		{"Full", cgroup, "the line `full`", "cgroup.TestReadsNumbersAndPressure"},
		{"Some", cgroup, "the line `some`", "cgroup.TestReadsNumbersAndPressure"},
	}},
	{"PsiData", []row{
		{"*", cgroup, "the number of the same name", "cgroup.TestReadsNumbersAndPressure"},
	}},
	{"MemoryUsage", []row{
		{"timestamp", berth, "when the files were read", "live.TestStatsMatchTheKernel"},
		{"working_set_bytes", cgroup, "the usage without inactive files", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2 live.TestStatsMatchTheKernel"},
		{"available_bytes", cgroup, "the limit minus the usage; unset without a limit", "stats.TestMemoryStatsOfCgroupV1 stats.TestMemoryStatsWithoutLimit"},
		{"usage_bytes", cgroup, "`memory.usage_in_bytes` or `memory.current`", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2 live.TestStatsMatchTheKernel"},
		{"rss_bytes", cgroup, "`total_rss` or `anon` of `memory.stat`", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2 live.TestStatsMatchTheKernel"},
		{"page_faults", cgroup, "`memory.stat`", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2"},
		{"major_page_faults", cgroup, "`memory.stat`", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2"},
		{"psi", cgroup, "`memory.pressure` on v2", "stats.TestStatsOfCgroupV2"},
	}},
	{"FilesystemUsage", []row{
		{"timestamp", berth, "for a layer the time of the measurement; for images and all containers the time of the response, because the kubelet evicts only on data newer than its last", "image.TestFsInfoReturnsTheLastMeasurement"},
		{"fs_id", berth, "see its field", "image.TestFsInfoReturnsTheLastMeasurement"},
		{"used_bytes", berth, "the size of image layers, and of the data that containers have written to root file systems, volumes of images and Docker's log files, measured periodically and once after their end", "diskusage.TestWalkCountsHardLinksOnce diskusage.TestWalkCountsFilesBeyondPathMax diskusage.TestExitedContainerIsMeasuredOnce diskusage.TestUsageIncludesDockerLogsAndOwnVolumesOnly live.TestAllThatAContainerWritesIsCounted image.TestFsInfoReturnsTheLastMeasurement image.TestFsInfoOfTheContainerdStoreExcludesContainers live.TestStatsMatchTheKernel"},
		{"inodes_used", berth, "the inodes of the data that containers have written, measured periodically and once after their end; for images 0, because Docker does not report them. Unset for a container whose files are not found", "diskusage.TestWalkCountsHardLinksOnce diskusage.TestWalkCountsFilesBeyondPathMax diskusage.TestExitedContainerIsMeasuredOnce diskusage.TestLayerOutsideDataRootIsNotRead"},
	}},
	{"FilesystemIdentifier", []row{
		{"mountpoint", engine, "`DockerRootDir` of info; with the containerd image store the data directory of its containerd, determined from its open files. The same for images and containers", "image.TestFsInfoReturnsTheLastMeasurement engine.TestContainerdRoot live.TestStatsMatchTheKernel"},
	}},
	{"SwapUsage", []row{
		{"timestamp", berth, "when the files were read", "stats.TestMemoryStatsOfCgroupV1"},
		{"swap_available_bytes", cgroup, "the limit minus the usage, at most the free swap of the node", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2"},
		{"swap_usage_bytes", cgroup, "`memory.memsw.usage_in_bytes` minus the memory usage, or `memory.swap.current`", "stats.TestMemoryStatsOfCgroupV1 stats.TestStatsOfCgroupV2"},
	}},
	{"IoUsage", []row{
		{"timestamp", berth, "when the file was read", "cgroup.TestReadsNumbersAndPressure"},
		{"psi", cgroup, "`io.pressure` on v2", "cgroup.TestReadsNumbersAndPressure"},
	}},
	{"ListContainerStatsRequest", []row{
		{"filter", berth, "see its fields", "cache.TestFilters"},
	}},
	{"ContainerStatsFilter", []row{
		{"*", berth, "as in ContainerFilter; only running containers are listed", "cache.TestFilters live.TestStatsMakeNoEngineCalls"},
	}},
	{"ListContainerStatsResponse", []row{
		{"stats", cgroup, "the stats of running containers", "live.TestStatsMatchTheKernel"},
	}},
	{"StreamContainerStatsRequest", []row{
		{"filter", berth, "as in ListContainerStatsRequest", "cache.TestFilters"},
	}},
	{"StreamContainerStatsResponse", []row{
		{"container_stats", cgroup, "as ListContainerStatsResponse, in pieces", "server.TestChunksHoldAllRowsInOrder"},
	}},
	{"PodSandboxStatsRequest", []row{
		{"pod_sandbox_id", berth, "found by the ID or a prefix of it", "live.TestStatsMatchTheKernel"},
	}},
	{"PodSandboxStatsResponse", []row{
		{"stats", cgroup, "see its fields", "live.TestStatsMatchTheKernel"},
	}},
	{"PodSandboxStats", []row{
		{"attributes", berth, "see its fields", "live.TestStatsMatchTheKernel"},
		{"linux", cgroup, "see its fields", "live.TestStatsMatchTheKernel"},
		{"windows", nothing, windows, ""},
	}},
	{"PodSandboxAttributes", []row{
		{"*", berth, "as in PodSandbox", "live.TestStatsMatchTheKernel"},
	}},
	{"LinuxPodSandboxStats", []row{
		{"cpu", cgroup, "of the pod's cgroup; for a pod without a cgroup, the sum of its containers", "live.TestStatsMatchTheKernel"},
		{"memory", cgroup, "of the pod's cgroup; for a pod without a cgroup, the sum of its containers", "live.TestStatsMatchTheKernel"},
		{"network", proc, "the counters of the pod's interfaces; unset for a pod on the node's network", "netns.TestTrafficReturnsCountersOfAllInterfacesButLoopback live.TestStatsMatchTheKernel"},
		{"process", cgroup, "`pids.current`", "live.TestStatsMatchTheKernel"},
		{"containers", cgroup, "the running containers", "live.TestStatsMatchTheKernel"},
		{"io", cgroup, "of the pod's cgroup, on v2", "cgroup.TestReadsNumbersAndPressure"},
	}},
	{"NetworkUsage", []row{
		{"timestamp", berth, "when the counters were read", "live.TestStatsMatchTheKernel"},
		{"default_interface", proc, "eth0", "live.TestStatsMatchTheKernel"},
		{"interfaces", proc, "the others, except lo", "netns.TestTrafficReturnsCountersOfAllInterfacesButLoopback"},
	}},
	{"NetworkInterfaceUsage", []row{
		{"*", proc, "`/proc/PID/net/dev`", "netns.TestTrafficReturnsCountersOfAllInterfacesButLoopback"},
	}},
	{"ProcessUsage", []row{
		{"timestamp", berth, "when the file was read", "live.TestStatsMatchTheKernel"},
		{"process_count", cgroup, "`pids.current`", "live.TestStatsMatchTheKernel"},
	}},
	{"WindowsPodSandboxStats", []row{{"*", nothing, windows, ""}}},
	{"WindowsCpuUsage", []row{{"*", nothing, windows, ""}}},
	{"WindowsMemoryUsage", []row{{"*", nothing, windows, ""}}},
	{"WindowsNetworkUsage", []row{{"*", nothing, windows, ""}}},
	{"WindowsNetworkInterfaceUsage", []row{{"*", nothing, windows, ""}}},
	{"WindowsProcessUsage", []row{{"*", nothing, windows, ""}}},
	{"WindowsContainerStats", []row{{"*", nothing, windows, ""}}},
	{"WindowsFilesystemUsage", []row{{"*", nothing, windows, ""}}},
	{"ListPodSandboxStatsRequest", []row{
		{"filter", berth, "see its fields", "cache.TestFilters"},
	}},
	{"PodSandboxStatsFilter", []row{
		{"*", berth, "as in PodSandboxFilter; only ready pods are listed", "cache.TestFilters"},
	}},
	{"ListPodSandboxStatsResponse", []row{
		{"stats", cgroup, "the stats of ready pods", "live.TestStatsMatchTheKernel"},
	}},
	{"StreamPodSandboxStatsRequest", []row{
		{"filter", berth, "as in ListPodSandboxStatsRequest", "cache.TestFilters"},
	}},
	{"StreamPodSandboxStatsResponse", []row{
		{"pod_sandbox_stats", cgroup, "as ListPodSandboxStatsResponse, in pieces", "server.TestChunksHoldAllRowsInOrder"},
	}},
	{"UpdateRuntimeConfigRequest", []row{
		{"runtime_config", plugins, "see its field", "network.TestAttachPassesDeclaredCapabilities"},
	}},
	{"RuntimeConfig", []row{
		{"network_config", plugins, "see its field", "network.TestAttachPassesDeclaredCapabilities"},
	}},
	{"NetworkConfig", []row{
		{"pod_cidr", plugins, "the capability `ipRanges` of networks that request it, and `cni-conf-template`; refused if it is not a CIDR", "network.TestAttachPassesDeclaredCapabilities network.TestConfigurationIsMadeOfThePodCIDR"},
	}},
	{"StatusRequest", []row{
		{"verbose", berth, "adds `info`", "live.TestPodSettingsReachTheContainer"},
	}},
	{"StatusResponse", []row{
		{"status", berth, "see its field", "server.TestCallsWhileDockerIsAway"},
		{"info", berth, "with verbose: berth's configuration and the features of Docker", "live.TestPodSettingsReachTheContainer"},
		{"runtime_handlers", engine, "`Runtimes` of info, the shims of `shim-runtimes`, and the default; read again when Docker reloads its configuration", "live.TestMounts live.TestDockerReloadUpdatesFeatures"},
		{"features", berth, "see its fields", "live.TestMounts"},
	}},
	{"RuntimeStatus", []row{
		{"conditions", berth, "RuntimeReady and NetworkReady", "server.TestCallsWhileDockerIsAway"},
	}},
	{"RuntimeCondition", []row{
		{"type", berth, "RuntimeReady or NetworkReady", "server.TestCallsWhileDockerIsAway"},
		{"status", berth, "whether Docker responds and is connected to containerd, and whether the plugins are ready", "server.TestCallsWhileDockerIsAway server.TestLostContainerdIsUnavailable live.TestLostContainerdIsUnavailable network.TestStatusRunsPluginsAndCachesResult"},
		{"reason", berth, "DockerDaemonNotReady or NetworkPluginNotReady", "server.TestCallsWhileDockerIsAway"},
		{"message", berth, "the reason in detail", "server.TestEngineTooOldIsReportedByStatus"},
	}},
	{"RuntimeHandler", []row{
		{"name", engine, "a key of `Runtimes` of info", "live.TestMounts"},
		{"features", berth, "see its fields", "live.TestMounts"},
	}},
	{"RuntimeHandlerFeatures", []row{
		{"recursive_read_only_mounts", berth, "whether Docker and the runtime support them, or berth can create premounts", "live.TestMounts engine.TestFeaturesFromInfo"},
		{"user_namespaces", berth, "for handlers with berth's OCI runtime, if the kernel and the file system of images can map IDs", "server.TestUserNamespacesAreAnnouncedWithTheRuntime ociruntime.TestProbeSaysWhatTheNodeLacks"},
	}},
	{"RuntimeFeatures", []row{
		{"supplemental_groups_policy", berth, "always", "e2e.TestCRI"},
		{"user_namespaces_host_network", berth, "where a handler has `user_namespaces`", "server.TestUserNamespacesAreAnnouncedWithTheRuntime live.TestUserNamespaceInTheNodesNetwork"},
		{"mount_options", berth, "whether berth can create premounts", "live.TestMounts"},
	}},
	{"CheckpointContainerRequest", []row{
		{"container_id", berth, "with CRIU; refused without", "live.TestCheckpointLeavesTheContainerRunning"},
		{"location", berth, "an absolute path; no link or device", "archive.TestLocationMustBeAFile live.TestCheckpointLeavesTheContainerRunning"},
		{"timeout", berth, "two minutes if 0", "criu.TestTimeoutEndsCRIUAndResumesTheContainer"},
	}},
	{"CheckpointPodRequest", []row{
		{"pod_sandbox_id", berth, "must be ready", "podcheckpoint.TestCheckpointRefusesRequests live.TestPodCheckpointIsRefused"},
		{"output_path", berth, "the absolute path of an empty directory; no link", "archive.TestDirMustBeEmpty live.TestPodCheckpointIsRefused"},
		{"container_ids", berth, "all are frozen before one is captured", "criu.TestPodIsFrozenUntilAllContainersAreCaptured podcheckpoint.TestCheckpointRefusesRequests live.TestPodCheckpointIsOfOneMoment"},
		{"options", refused, "there are none", "podcheckpoint.TestCheckpointRefusesRequests"},
	}},
	{"RestorePodRequest", []row{
		{"checkpoint_path", berth, "below `restore-archive-dir`; refused without", "podcheckpoint.TestRestoreRefusesRequests live.TestPodCheckpointRestoreIsUndone"},
		{"config", berth, "as in RunPodSandbox, of a pod that does not exist", "podcheckpoint.TestRestoredContainersAreCreatedAndNotStarted live.TestPodCheckpointIsOfOneMoment"},
		{"runtime_handler", berth, "must be that of the checkpoint", "podcheckpoint.TestRestoreRefusesRequests"},
		{"options", refused, "there are none", "podcheckpoint.TestRestoreRefusesRequests"},
		{"container_configs", berth, "as in CreateContainer; refused if they do not fit the checkpoint", "podcheckpoint.TestRestoreRefusesRequests live.TestPodCheckpointIsOfOneMoment"},
	}},
	{"RestorePodResponse", []row{
		{"pod_sandbox_id", berth, "of the new pod", "podcheckpoint.TestRestoredContainersAreCreatedAndNotStarted live.TestPodCheckpointIsOfOneMoment"},
		{"restored_containers", berth, "in the order of the request", "podcheckpoint.TestRestoredContainersAreCreatedAndNotStarted"},
	}},
	{"RestoredContainer", []row{
		{"name", berth, "that of the configuration", "podcheckpoint.TestRestoredContainersAreCreatedAndNotStarted"},
		{"container_id", berth, "CREATED, nothing executed", "podcheckpoint.TestRestoredContainersAreCreatedAndNotStarted live.TestPodCheckpointIsOfOneMoment"},
	}},
	{"ContainerEventResponse", []row{
		{"container_id", engine, "of a container, or of a pause container", "live.TestEventsFollowEveryChange"},
		{"container_event_type", engine, "the transitions between two inspects", "cache.TestDiffOfTwoInspects live.TestEventsFollowEveryChange"},
		{"created_at", engine, "the time of the change", "cache.TestDiffOfTwoInspects"},
		{"pod_sandbox_status", berth, "the status at that time", "live.TestEventsFollowEveryChange"},
		{"containers_statuses", berth, "the statuses at that time", "live.TestEventsFollowEveryChange"},
	}},
	{"ListMetricDescriptorsResponse", []row{
		{"descriptors", berth, "the metrics available on this node; they do not change while berthd runs", "server.TestCallsAreMeasured"},
	}},
	{"MetricDescriptor", []row{
		{"name", berth, "cAdvisor's, as in CRI-O and containerd", "stats.TestFamilyNamesAreThoseOfCRIO"},
		{"help", berth, "a sentence", "stats.TestFamilyNamesAreThoseOfCRIO"},
		{"label_keys", berth, "in the order of the values", "stats.TestLabelValuesMatchTheirKeys"},
	}},
	{"ListPodSandboxMetricsResponse", []row{
		{"pod_metrics", berth, "of all running pods", "server.TestCallsAreMeasured live.TestMetricsMatchTheKernel"},
	}},
	{"PodSandboxMetrics", []row{
		{"pod_sandbox_id", engine, "the ID of the pause container", "server.TestCallsAreMeasured"},
		{"metrics", cgroup, "of the cgroup of the pod, and of its interfaces", "live.TestMetricsMatchTheKernel cgroupstats.TestReadGivesTheSameForBothVersions"},
		{"container_metrics", cgroup, "of its running containers", "live.TestMetricsMatchTheKernel cgroupstats.TestReadGivesTheSameForBothVersions"},
	}},
	{"Metric", []row{
		{"name", berth, "as in its descriptor", "stats.TestLabelValuesMatchTheirKeys"},
		{"timestamp", nothing, "unset, which means now", ""},
		{"metric_type", berth, "counter or gauge", "stats.TestEncodeMetricsTruncatesToSeconds"},
		{"label_values", berth, "in the order of the keys", "stats.TestLabelValuesMatchTheirKeys"},
		{"value", cgroup, "from cgroup files and /proc; times in whole seconds", "live.TestMetricsMatchTheKernel stats.TestEncodeMetricsTruncatesToSeconds"},
	}},
	{"ContainerMetrics", []row{
		{"container_id", engine, "of the Docker container", "server.TestCallsAreMeasured"},
		{"metrics", cgroup, "of its cgroup and its processes", "live.TestMetricsMatchTheKernel cgroupstats.TestReadGivesTheSameForBothVersions"},
	}},
	{"StreamPodSandboxMetricsResponse", []row{
		{"pod_sandbox_metrics", berth, "the list in pieces", "server.TestCallsAreMeasured"},
	}},
	{"RuntimeConfigResponse", []row{
		{"linux", engine, "see its field", "e2e.TestCRI"},
	}},
	{"LinuxRuntimeConfiguration", []row{
		{"cgroup_driver", engine, "`CgroupDriver` of info", "e2e.TestCRI"},
	}},
	{"UpdatePodSandboxResourcesRequest", []row{
		{"pod_sandbox_id", berth, "found by the ID or a prefix of it", "live.TestUpdateContainerResources"},
		{"overhead", store, "returned in the verbose status; the kubelet itself sets the cgroup of the pod", "live.TestUpdateContainerResources"},
		{"resources", store, "returned in the verbose status; the kubelet itself sets the cgroup of the pod", "live.TestUpdateContainerResources"},
	}},
	{"ListImagesRequest", []row{
		{"filter", berth, "see its field", "image.TestImageHasTheSameIDInAllResponses"},
	}},
	{"ImageFilter", []row{
		{"image", engine, "the image with this name", "image.TestImageHasTheSameIDInAllResponses"},
	}},
	{"ListImagesResponse", []row{
		{"images", engine, "see its fields", "image.TestImageHasTheSameIDInAllResponses"},
	}},
	{"Image", []row{
		{"id", engine, "`Id`", "image.TestImageHasTheSameIDInAllResponses"},
		{"repo_tags", engine, "`RepoTags`", "tocri.TestImage"},
		{"repo_digests", engine, "`RepoDigests`; for an image from a mirror in `registry-mirrors`, the requested digest", "tocri.TestImage image.TestMirroredImageHasTheRequestedName live.TestMirrors"},
		{"size", engine, "`Size`, at least 1", "tocri.TestImage"},
		{"uid", engine, "`Config.User`, if it is a number from 0 to 2147483647", "tocri.TestImage tocri.TestImageUserOutOfRangeIsAName"},
		{"username", engine, "`Config.User`, if it is anything else", "tocri.TestImage tocri.TestImageUserOutOfRangeIsAName"},
		{"spec", nothing, "an image does not depend on the request, and Docker stores no annotations", ""},
		{"pinned", berth, "the pause image; images that no registry is known to have, or that containers outside of Kubernetes use; those that `pinned-images` and `pin-labels` select", "image.TestPauseImage image.TestPauseImagesAreRecognised image.TestImagesThatNoRegistryHasArePinned pinning.TestReasonOfAnImage live.TestBuiltImagesArePinned live.TestImagesOfOtherContainersArePinned"},
	}},
	{"StreamImagesRequest", []row{
		{"filter", berth, "as in ListImagesRequest", "image.TestImageHasTheSameIDInAllResponses"},
	}},
	{"StreamImagesResponse", []row{
		{"images", engine, "as ListImagesResponse, in pieces", "server.TestChunksHoldAllRowsInOrder"},
	}},
	{"ImageStatusRequest", []row{
		{"image", engine, "see its fields", "image.TestImageHasTheSameIDInAllResponses"},
		{"verbose", berth, "adds `info`", "e2e.TestCRI"},
	}},
	{"ImageStatusResponse", []row{
		{"image", engine, "see its fields; a missing image is not an error", "image.TestImageHasTheSameIDInAllResponses image.TestAbbreviatedIDs"},
		{"info", engine, "with verbose, the platform, configuration and layers of the image", "e2e.TestCRI"},
	}},
	{"PullImageRequest", []row{
		{"image", engine, "see its fields", "image.TestConcurrentPullsAreShared"},
		{"auth", engine, "`X-Registry-Auth`; without credentials, Docker's own configuration is used with `node-credentials`, and for the pause image", "image.TestCredentials registryauth.TestAuthInEveryForm live.TestPullsUseGivenCredentials"},
		{"sandbox_config", berth, "namespace, name and UID of the pod are given to the programs in `image-verifier-dir`; Docker pulls an image in the same way for every pod", "image.TestPullIsVerified live.TestImageVerifiers"},
	}},
	{"AuthConfig", []row{
		{"username", engine, "`X-Registry-Auth`", "registryauth.TestAuthInEveryForm live.TestPullsUseGivenCredentials"},
		{"password", engine, "`X-Registry-Auth`", "registryauth.TestAuthInEveryForm live.TestPullsUseGivenCredentials"},
		{"auth", engine, "as user and password, if those are not set", "registryauth.TestAuthInEveryForm live.TestPullsUseGivenCredentials"},
		{"server_address", engine, "`X-Registry-Auth`; credentials for another registry are not sent", "registryauth.TestCredentialsAreForTheirRegistryOnly live.TestPullsUseGivenCredentials"},
		{"identity_token", engine, "`X-Registry-Auth`", "registryauth.TestAuthInEveryForm"},
		{"registry_token", engine, "`X-Registry-Auth`", "registryauth.TestAuthInEveryForm"},
	}},
	{"PullImageResponse", []row{
		{"image_ref", engine, "the ID of the image", "image.TestImageHasTheSameIDInAllResponses"},
	}},
	{"RemoveImageRequest", []row{
		{"image", engine, "removed with all its names; found by a name, an ID or the first 12 digits of an ID. A pinned image is refused by ID, and loses one name by name", "image.TestPinnedImagesAreRemovedByNameOnly image.TestImagesOfContainersOutsideOfPodsAreKept image.TestConcurrentRemovalsSucceed image.TestRemoveOfAnImageInUseIsAConflict image.TestRemoveOfAParentImageRemovesItsNames image.TestAbbreviatedIDs"},
	}},
	{"ImageFsInfoResponse", []row{
		{"image_filesystems", berth, "see FilesystemUsage", "image.TestFsInfoReturnsTheLastMeasurement"},
		{"container_filesystems", berth, "see FilesystemUsage; the same file system", "image.TestFsInfoReturnsTheLastMeasurement"},
	}},
}
