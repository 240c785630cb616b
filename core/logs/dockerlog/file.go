package dockerlog

import (
	"path/filepath"
	"strconv"

	"github.com/docker/docker/api/types/container"
)

// Docker's names of the log drivers of which the files can be read.
const (
	JSONFile = "json-file"
	Local    = "local"
)

// A File is the newest file that a log driver of Docker's writes for a container. The zero File
// is that of a container whose files cannot be read or are not known.
type File struct {
	Driver string // JSONFile or Local
	Path   string // rotated files have a suffix: .1 for the newest
}

// FileOf returns the file of the container id with the log driver and options config. rootDir is
// Docker's data directory. Files that Docker compresses, which is a default of the driver local, are not
// read.
//
// The Engine API reports the path with json-file only, and only once the container has been started. See
// StartLogger in moby's container/container.go.
func FileOf(rootDir, id string, config container.LogConfig) File {
	switch config.Type {
	case JSONFile:
		return File{JSONFile, JSONPath(rootDir, id)}
	case Local:
		if compress, err := strconv.ParseBool(config.Config["compress"]); err == nil && !compress {
			return File{Local, filepath.Join(rootDir, "containers", id, "local-logs", "container.log")}
		}
	}
	return File{}
}

// FileOfInspected is FileOf for an inspect result.
func FileOfInspected(rootDir string, result container.InspectResponse) File {
	switch {
	case result.LogPath != "":
		return File{JSONFile, result.LogPath}
	case result.HostConfig != nil && result.HostConfig.LogConfig.Type == Local:
		return FileOf(rootDir, result.ID, result.HostConfig.LogConfig)
	}
	return File{}
}

// JSONPath returns the path of the file that the log driver json-file writes for a container.
func JSONPath(rootDir, id string) string {
	return filepath.Join(rootDir, "containers", id, id+"-json.log")
}
