package verify

import (
	"os"
	"path/filepath"

	"berth/core/trust"
)

// Programs returns the paths of the programs in dir, ordered by name. It fails if the directory,
// one of the programs, or a directory on the way there does not belong to root, or if others
// can write to it: they could decide which images are pulled.
func Programs(dir string) ([]string, error) {
	if err := trust.Check(dir); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir) // ordered by name
	if err != nil {
		return nil, err
	}
	programs := make([]string, 0, len(entries))
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if err := trust.Check(path); err != nil {
			return nil, err
		}
		programs = append(programs, path)
	}
	return programs, nil
}
