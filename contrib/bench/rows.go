package main

import (
	"fmt"
	"math"
	"strings"
)

// What is measured.
const (
	rowRun             = "RunPodSandbox with a CNI bridge"
	rowCreate          = "CreateContainer"
	rowStart           = "StartContainer"
	rowExec            = "ExecSync true"
	rowStatus          = "ContainerStatus"
	rowStopContainer   = "StopContainer, no grace"
	rowRemoveContainer = "RemoveContainer"
	rowStop            = "StopPodSandbox"
	rowRemove          = "RemovePodSandbox"
	rowBurst           = "burst: all pods up"
	rowPods            = "ListPodSandbox"
	rowContainers      = "ListContainers"
	rowStats           = "ListContainerStats"
	rowPodStats        = "ListPodSandboxStats"
	rowStatuses        = "status of all pods and containers"
	rowRelist          = "CPU under a kubelet's relist"
	rowEmpty           = "CPU under as many empty calls"
	rowProbe           = "exec probe"
	rowProbes          = "CPU under exec probes"
	rowLeftProcesses   = "left of probes: processes"
	rowLeftSessions    = "left of probes: exec sessions"
	rowLeftFiles       = "left of probes: open files"
	rowIdle            = "CPU, containers at rest"
	rowLogs            = "CPU of a container's output"
	rowMemoryIdle      = "resident memory, no pods"
	rowBinary          = "size of the program"
)

func rowMemory(pods int) string      { return fmt.Sprintf("resident memory, %d pods", pods) }
func at(row string, pods int) string { return fmt.Sprintf("%s, %d pods", row, pods) }
func of(row, process string) string  { return row + " / " + process }
func part(row string) (of, p string) { of, p, _ = strings.Cut(row, " / "); return of, p }
func isMemory(row string) bool       { return strings.HasPrefix(row, "resident memory") }

// unitOf returns what a row is measured in.
func unitOf(row string) string {
	whole, _ := part(row)
	switch {
	case whole == rowBurst:
		return "s"
	case whole == rowLogs:
		return "CPU s"
	case whole == rowRelist, whole == rowEmpty, whole == rowIdle, whole == rowProbes:
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

// A must is what berth has promised of a row.
type must struct {
	row  string
	most float64
	kind kind
}

// A kind is how a promise is carried over to another machine.
type kind int

const (
	// fixed is the same everywhere.
	fixed kind = iota
	// times is a factor of what the bare calls take.
	times
	// starting is absolute, of what starts and ends processes: it is stretched as
	// bare calls of that sort are.
	starting
	// asking is absolute, of what is asked only: it is stretched as a bare
	// inspect is.
	asking
)

// musts are the promises, for fifty pods of one container, and bursts of 20
// pods with 10 begun at a time.
var musts = []must{
	{rowRun, 140, starting},
	{rowCreate, 12, starting},
	{rowStart, 1.05, times},
	{rowExec, 1.0, times},
	{rowStatus, 0.5, asking},
	{rowStop, 100, starting},
	{rowBurst, 2.6, starting},
	{rowPods, 0.7, asking},
	{rowContainers, 0.6, asking},
	{rowStats, 12, asking},
	{rowPodStats, 12, asking},
	{rowStatuses, 40, asking},
	{rowRelist, 0.6, asking},
	{rowLogs, 1.25, times},
	{rowLeftProcesses, 0, fixed},
	{rowLeftSessions, 0, fixed},
	{rowMemory(50), 30, fixed},
	{rowBinary, 25, fixed},
}

// promise returns what is promised of a row, if anything is.
func promise(row string) (must, bool) {
	for _, m := range musts {
		if m.row == row {
			return m, true
		}
	}
	return must{}, false
}

// bareThere is what bare calls took on the machine that the promises were
// made on, in ms.
var bareThere = map[kind]map[string]float64{
	starting: {rowCreate: 10, rowStart: 95, rowExec: 59},
	asking:   {rowStatus: 1.0},
}

// slower returns how much longer bare calls of a kind take here, 0 if they were
// not measured.
func slower(k kind, medianOfBare func(row string) (float64, bool)) float64 {
	sum, n := 0.0, 0
	for row, there := range bareThere[k] {
		if here, ok := medianOfBare(row); ok && here > 0 {
			sum += math.Log(here / there)
			n++
		}
	}
	if n == 0 {
		return 0
	}
	return math.Exp(sum / float64(n))
}
