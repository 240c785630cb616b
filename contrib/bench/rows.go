package main

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Names of the rows.
const (
	rowRun             = "RunPodSandbox with a CNI bridge"
	rowCreate          = "CreateContainer"
	rowStart           = "StartContainer"
	rowExec            = "ExecSync true"
	rowStatus          = "ContainerStatus"
	rowStopContainer   = "StopContainer, grace period 0"
	rowRemoveContainer = "RemoveContainer"
	rowStop            = "StopPodSandbox"
	rowRemove          = "RemovePodSandbox"
	rowBurst           = "burst: all pods running"
	rowPods            = "ListPodSandbox"
	rowContainers      = "ListContainers"
	rowStats           = "ListContainerStats"
	rowPodStats        = "ListPodSandboxStats"
	rowImages          = "ListImages"
	rowStatuses        = "status of all pods and containers"
	rowRelist          = "CPU of a kubelet's relist"
	rowEmpty           = "CPU of the same number of empty calls"
	rowProbe           = "exec probe"
	rowProbes          = "CPU of exec probes"
	rowLeftProcesses   = "left by probes: processes"
	rowLeftSessions    = "left by probes: exec sessions"
	rowLeftFiles       = "left by probes: open files"
	rowIdle            = "CPU of idle containers"
	rowLogs            = "CPU of a container's output"
	rowMemoryIdle      = "resident memory, no pods"
	rowBinary          = "size of the program"
)

// Names of the rows of runs with --shims, for pods of a number of containers.
const (
	rowShims       = "shims of a pod"
	rowShimMemory  = "PSS of the shims of a pod"
	rowShimThreads = "threads of the shims of a pod"
	rowPodStart    = "start of a pod"
	rowPodCPU      = "CPU of the start of a pod"
)

// Names of the rows of runs with --density, for a number of pods.
const (
	rowRestart    = "restart to the first correct list"
	rowRestartCPU = "CPU of a restart"
	rowNode       = "PSS of the node"
	rowNodePod    = "PSS of the node per pod"
)

// Names of the rows of runs with --streams.
const (
	rowStdout  = "exec, stdout"
	rowStdin   = "exec, stdin"
	rowAttach  = "attach, stdout"
	rowForward = "port-forward, from the pod"
)

var streamRows = []string{rowStdout, rowStdin, rowAttach, rowForward}

// cpuOf is the row with the CPU of a row with a throughput.
func cpuOf(row string) string { return "CPU of " + row }

func rowMemory(pods int) string      { return fmt.Sprintf("resident memory, %d pods", pods) }
func at(row string, pods int) string { return fmt.Sprintf("%s, %d pods", row, pods) }
func of(row, process string) string  { return row + " / " + process }
func part(row string) (of, p string) { of, p, _ = strings.Cut(row, " / "); return of, p }
func isMemory(row string) bool {
	return strings.HasPrefix(row, "resident memory") || strings.HasPrefix(row, "PSS")
}

// each returns the name of a row for pods of a number of containers.
func each(row string, containers int) string {
	if containers == 1 {
		return row + " of 1 container"
	}
	return fmt.Sprintf("%s of %d containers", row, containers)
}

// higherIsBetter reports whether more is better in rows with a unit.
func higherIsBetter(unit string) bool { return unit == "MB/s" }

// unitOf returns the unit of a row.
func unitOf(row string) string {
	whole, _ := part(row)
	switch {
	case whole == rowBurst:
		return "s"
	case strings.HasPrefix(whole, rowRestartCPU), strings.HasPrefix(whole, rowPodCPU):
		return "CPU ms"
	case strings.HasPrefix(whole, rowShims), strings.HasPrefix(whole, rowShimThreads):
		return ""
	case whole == rowLogs:
		return "CPU s"
	case slices.Contains(streamRows, whole):
		return "MB/s"
	case slices.ContainsFunc(streamRows, func(row string) bool { return whole == cpuOf(row) }):
		return "CPU s/GB"
	case strings.HasPrefix(whole, rowRelist), whole == rowEmpty, whole == rowIdle, whole == rowProbes:
		return "% of a core"
	case isMemory(row):
		return "MiB"
	case row == rowBinary:
		return "MB"
	case row == rowLeftProcesses, row == rowLeftSessions, row == rowLeftFiles:
		return ""
	default:
		return "ms"
	}
}

// A target is the value that berth must not exceed in a row.
type target struct {
	row  string
	most float64
	kind kind
}

// A kind is how a target is scaled to another machine.
type kind int

const (
	// fixed: the same on every machine.
	fixed kind = iota
	// ratio: a factor of the duration of the bare calls.
	ratio
	// beside: a factor of the duration on containerd. Runs without it have no such target.
	beside
	// processBound: an absolute duration of operations that start or end processes. It is
	// multiplied by the slowdown of bare calls of that kind.
	processBound
	// queryBound: an absolute duration of queries. It is multiplied by the slowdown of a bare
	// inspect.
	queryBound
)

// targets are for 50 pods of one container, and bursts of 20
// pods with 10 started in parallel.
var targets = []target{
	{rowRun, 1, beside},
	{rowCreate, 1.1, ratio},
	{rowStart, 1, beside},
	{rowExec, 1.05, beside},
	{rowStatus, 0.5, queryBound},
	{rowStop, 100, processBound},
	{rowBurst, 1, beside},
	{rowPods, 0.7, queryBound},
	{rowContainers, 0.6, queryBound},
	{rowStats, 12, queryBound},
	{rowPodStats, 12, queryBound},
	{rowImages, 1, beside},
	{rowStatuses, 25, queryBound},
	{rowRelist, 0.5, queryBound},
	{rowLogs, 1.25, ratio},
	{rowLeftProcesses, 0, fixed},
	{rowLeftSessions, 0, fixed},
	{rowMemory(50), 30, fixed},
	{rowBinary, 25, fixed},
}

// targetOf returns the target of a row, if it has one.
func targetOf(row string) (target, bool) {
	for _, m := range targets {
		if m.row == row {
			return m, true
		}
	}
	return target{}, false
}

// referenceBare is how long bare calls took on the machine for which the targets were
// set, in ms.
var referenceBare = map[kind]map[string]float64{
	processBound: {rowCreate: 10, rowStart: 95, rowExec: 59},
	queryBound:   {rowStatus: 1.0},
}

// slowdown returns the factor by which bare calls of a kind take longer in this run than on the
// reference machine, 0 if they were not measured.
func slowdown(k kind, bareMedian func(row string) (float64, bool)) float64 {
	sum, n := 0.0, 0
	for row, there := range referenceBare[k] {
		if here, ok := bareMedian(row); ok && here > 0 {
			sum += math.Log(here / there)
			n++
		}
	}
	if n == 0 {
		return 0
	}
	return math.Exp(sum / float64(n))
}
