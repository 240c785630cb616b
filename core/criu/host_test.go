package criu

import (
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// CRIU 4.2.1 shows "criu: dump --rpc -t 1398" in the place of its arguments and its environment.
func TestProcessesOfACheckpointEnd(t *testing.T) {
	marker := rand.Text()
	dir := filepath.Join(t.TempDir(), marker, "work")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*exec.Cmd){
		"environment":       func(c *exec.Cmd) { c.Env = []string{markerName + "=" + marker} },
		"arguments":         func(c *exec.Cmd) { c.Args[0] = "criu -D /" + marker },
		"working directory": func(c *exec.Cmd) { c.Dir = dir },
	} {
		cmd := exec.Command("/bin/sleep", "60")
		cmd.Env = []string{}
		change(cmd)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		if err := endProcesses(t.Context(), marker); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Errorf("%s: the process was not ended", name)
			_ = cmd.Process.Kill()
			<-ended
		}
	}
}
