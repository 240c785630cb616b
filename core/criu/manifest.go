package criu

import (
	"time"
)

const (
	// ManifestFile is the file that describes the checkpoint of a pod. It is written last: without it there is no checkpoint.
	ManifestFile = "pod.json"
	// ManifestVersion is the version of its format.
	ManifestVersion = 1
	// archiveSuffix ends the names of archives of a pod, which begin with the name of the container.
	archiveSuffix = ".tar"
)

// A Manifest describes the checkpoint of a pod.
type Manifest struct {
	Version        int                 `json:"version"`
	CreatedAt      time.Time           `json:"createdAt"`      // when all containers were frozen
	Berth          string              `json:"berth"`          // version of berthd
	CRIU           string              `json:"criu"`           // its version
	Kernel         string              `json:"kernel"`         // release
	RuntimeHandler string              `json:"runtimeHandler"` // of the pod, as in RunPodSandboxRequest
	Pod            ManifestPod         `json:"pod"`
	Containers     []ManifestContainer `json:"containers"`
}

// A ManifestPod says which pod a checkpoint was taken of.
type ManifestPod struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	UID       string `json:"uid"`
}

// A ManifestContainer is a container in the checkpoint of a pod.
type ManifestContainer struct {
	Name    string `json:"name"`
	ID      string `json:"id"`
	Archive string `json:"archive"` // name of the file beside the manifest
	Bytes   int64  `json:"bytes"`   // its size
}
