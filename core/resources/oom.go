package resources

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"berth/core/cgroup"
)

// readOOMScore reads the oom_score_adj of a process.
func readOOMScore(pid int) (int, error) {
	text, err := os.ReadFile(oomScoreFile(pid))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// setOOMScore sets the oom_score_adj of all processes of the container id, the first of which is pid. An update of
// Docker does not change it: what it is given at creation holds for the first process, and others inherit that.
func setOOMScore(id string, pid, score int) error {
	if current, err := readOOMScore(pid); err != nil || current == score {
		return ignoreExited(err)
	}
	group, err := cgroup.ForContainer(pid, id)
	if err != nil {
		return ignoreExited(err)
	}
	processes, err := cgroup.Processes(group)
	if err != nil {
		return ignoreExited(err)
	}
	var errs []error
	for _, process := range processes {
		err := os.WriteFile(oomScoreFile(process), []byte(strconv.Itoa(score)), 0)
		errs = append(errs, ignoreExited(err))
	}
	return errors.Join(errs...)
}

func oomScoreFile(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/oom_score_adj" }
