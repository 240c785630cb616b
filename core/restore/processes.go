package restore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// CRIU gives each thread the privileges that its image core-<ID>.img has, whatever the config.json says. So they are read here, and
// compared by berth-oci. The format is that of CRIU 2.0 and newer: two magic numbers (criu/include/magic.h), a length, and a core_entry
// (images/core.proto, images/creds.proto).
const (
	commonMagic, coreMagic = 0x54564319, 0x55053847
	// maxCore bounds such an image, in bytes. They have some kilobytes.
	maxCore = 4 << 20

	fieldTask, fieldThread                   = 3, 5      // of core_entry
	fieldState                               = 1         // of task_core_entry
	fieldCreds, fieldSeccomp                 = 10, 11    // of thread_core_entry
	fieldFirstSet, fieldLastSet, fieldNoPriv = 9, 12, 18 // of creds_entry
	// stateDead and stateZombie are the task_state of a process that has exited and not been waited for, which has no thread
	// (compel/include/uapi/task-state.h).
	stateDead, stateZombie = 2, 6
)

// userFields are the real, effective, saved and file system user of a creds_entry.
var userFields = []protowire.Number{1, 3, 5, 7}

// processes is what CRIU gives to the processes of a checkpoint.
type processes struct {
	capabilities    uint64 // all that one of them has in one of its sets
	root            bool   // one has the user ID 0
	seccomp         bool   // all have a filter
	noNewPrivileges bool   // all
}

// readProcesses reads CRIU's images in a directory.
func readProcesses(dir string) (processes, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return processes{}, err
	}
	all, found := processes{seccomp: true, noNewPrivileges: true}, false
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "creds-") {
			return processes{}, invalid("%s: images of CRIU before 2.0 are not supported", e.Name())
		}
		if !strings.HasPrefix(e.Name(), "core-") {
			continue
		}
		found = true
		text, err := readCore(filepath.Join(dir, e.Name()))
		if err == nil {
			err = all.add(text)
		}
		if err != nil {
			return processes{}, invalid("%s: %w", e.Name(), err)
		}
	}
	if !found {
		return processes{}, invalid("there are no images of processes")
	}
	return all, nil
}

// readCore returns the core_entry of an image.
func readCore(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxCore {
		return nil, fmt.Errorf("more than %d bytes", maxCore)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	const head = 3 * 4
	if len(text) < head || binary.LittleEndian.Uint32(text) != commonMagic || binary.LittleEndian.Uint32(text[4:]) != coreMagic {
		return nil, errors.New("no image of a process")
	}
	if size := binary.LittleEndian.Uint32(text[8:]); int64(size) != int64(len(text)-head) {
		return nil, errors.New("truncated, or with more than one entry")
	}
	return text[head:], nil
}

// add adds what a core_entry has.
func (p *processes) add(entry []byte) error {
	task, _, err := message(entry, fieldTask)
	if err != nil {
		return err
	}
	thread, hasThread, err := message(entry, fieldThread)
	if err != nil {
		return err
	}
	if !hasThread {
		if state, err := number(task, fieldState); err != nil || state != stateDead && state != stateZombie {
			return errors.Join(errors.New("a process without a thread"), err)
		}
		return nil
	}
	creds, hasCreds, err := message(thread, fieldCreds)
	if err != nil {
		return err
	}
	if !hasCreds {
		return errors.New("a thread without credentials")
	}
	if err := p.addCapabilities(creds); err != nil {
		return err
	}
	for _, field := range userFields {
		id, err := number(creds, field)
		if err != nil {
			return err
		}
		p.root = p.root || id == 0
	}
	seccomp, err := number(thread, fieldSeccomp)
	if err != nil {
		return err
	}
	noPrivileges, err := number(creds, fieldNoPriv)
	p.seccomp = p.seccomp && seccomp != 0
	p.noNewPrivileges = p.noNewPrivileges && noPrivileges != 0
	return err
}

// addCapabilities adds the sets of a creds_entry, each two numbers of 32 bits, the lower first. The ambient set is a part of the permitted
// one in the kernel.
func (p *processes) addCapabilities(creds []byte) error {
	words := map[protowire.Number]int{}
	add := func(field protowire.Number, word uint64) error {
		n := words[field]
		words[field]++
		if n > 1 || word>>32 != 0 {
			return errors.New("a set of capabilities has more than 64")
		}
		p.capabilities |= word << (32 * n)
		return nil
	}
	return fields(creds, func(field protowire.Number, kind protowire.Type, value []byte) error {
		if field < fieldFirstSet || field > fieldLastSet {
			return nil
		}
		if kind == protowire.BytesType { // packed
			packed, n := protowire.ConsumeBytes(value)
			for n >= 0 && len(packed) > 0 {
				var word uint64
				if word, n = protowire.ConsumeVarint(packed); n < 0 {
					break
				}
				packed = packed[n:]
				if err := add(field, word); err != nil {
					return err
				}
			}
			if n < 0 {
				return protowire.ParseError(n)
			}
			return nil
		}
		word, n := protowire.ConsumeVarint(value)
		if kind != protowire.VarintType || n < 0 {
			return errors.New("a set of capabilities is no number")
		}
		return add(field, word)
	})
}

// fields calls visit for each field of a message, with its value as it is encoded.
func fields(text []byte, visit func(field protowire.Number, kind protowire.Type, value []byte) error) error {
	for len(text) > 0 {
		field, kind, n := protowire.ConsumeTag(text)
		if n < 0 {
			return protowire.ParseError(n)
		}
		text = text[n:]
		n = protowire.ConsumeFieldValue(field, kind, text)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if err := visit(field, kind, text[:n]); err != nil {
			return err
		}
		text = text[n:]
	}
	return nil
}

// message returns the message in a field. A field that is there twice, which readers merge in different ways, is an error.
func message(text []byte, wanted protowire.Number) (value []byte, ok bool, err error) {
	err = fields(text, func(field protowire.Number, kind protowire.Type, encoded []byte) error {
		if field != wanted {
			return nil
		}
		inner, n := protowire.ConsumeBytes(encoded)
		if ok || kind != protowire.BytesType || n < 0 {
			return fmt.Errorf("field %d is there twice or is no message", wanted)
		}
		value, ok = bytes.Clone(inner), true
		return nil
	})
	return value, ok, err
}

// number returns the last number in a field, 0 if there is none.
func number(text []byte, wanted protowire.Number) (value uint64, err error) {
	err = fields(text, func(field protowire.Number, kind protowire.Type, encoded []byte) error {
		if field != wanted {
			return nil
		}
		n := 0
		if value, n = protowire.ConsumeVarint(encoded); kind != protowire.VarintType || n < 0 {
			return fmt.Errorf("field %d is no number", wanted)
		}
		return nil
	})
	return value, err
}
