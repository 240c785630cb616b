package main

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// passphraseVariable is the environment variable with the passphrase of the key: arguments
// of a process are visible to all users of a machine.
const passphraseVariable = "SIGNING_PASSPHRASE"

// A signer signs with an OpenPGP key.
type signer struct {
	entity *openpgp.Entity
	key    *packet.PrivateKey // of the entity, or one of its subkeys
}

// readSigner reads a private key, armored or binary, as gpg --export-secret-keys writes it.
// The passphrase is the first line of passphraseFile if that is set.
func readSigner(path, passphraseFile string) (*signer, error) {
	passphrase := os.Getenv(passphraseVariable)
	if err := os.Unsetenv(passphraseVariable); err != nil { // programs that are run later need it not
		return nil, err
	}
	if passphraseFile != "" {
		text, err := os.ReadFile(passphraseFile)
		if err != nil {
			return nil, err
		}
		passphrase, _, _ = strings.Cut(string(text), "\n")
		passphrase = strings.TrimSuffix(passphrase, "\r")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	s, err := parseSigner(content, passphrase)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return s, nil
}

func parseSigner(content []byte, passphrase string) (*signer, error) {
	read := openpgp.ReadKeyRing
	if bytes.HasPrefix(bytes.TrimSpace(content), []byte("-----BEGIN")) {
		read = openpgp.ReadArmoredKeyRing
	}
	entities, err := read(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("not an OpenPGP private key: %w", err)
	}
	if len(entities) != 1 || entities[0].PrivateKey == nil {
		return nil, errors.New("must contain exactly one OpenPGP private key")
	}
	s := &signer{entity: entities[0]}
	key, ok := s.entity.SigningKey(time.Now())
	if !ok || key.PrivateKey == nil || key.PrivateKey.Dummy() {
		return nil, errors.New("the key cannot sign: it is expired, revoked, not for signing, or its private part is not in the file")
	}
	s.key = key.PrivateKey
	switch s.key.PubKeyAlgo {
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
	default:
		// rpm 4.14 of RHEL 8 verifies only RSA and DSA; apt 2.9 refuses DSA.
		return nil, errors.New("the key must be an RSA key: rpm in RHEL 8 cannot verify others")
	}
	if bits, err := s.key.BitLength(); err != nil || bits < 2048 {
		return nil, errors.New("the key must have 2048 bits or more: apt refuses shorter ones")
	}
	if s.key.Encrypted {
		if passphrase == "" {
			return nil, fmt.Errorf("the key has a passphrase: set %s or -passphrase-file", passphraseVariable)
		}
		if err := s.entity.DecryptPrivateKeys([]byte(passphrase)); err != nil {
			return nil, fmt.Errorf("the key cannot be decrypted with this passphrase: %w", err)
		}
	}
	return s, nil
}

// String returns the fingerprint of the primary key, by which users identify it.
func (s *signer) String() string { return fmt.Sprintf("%X", s.entity.PrimaryKey.Fingerprint) }

// config returns the options of a signature. Its time is the time of signing, not that of
// the sources: the key may be newer than these.
func (s *signer) config() *packet.Config {
	return &packet.Config{DefaultHash: crypto.SHA256, SigningKeyId: s.key.KeyId}
}

// binary returns a detached signature, as the headers of an rpm contain it.
func (s *signer) binary(data io.Reader) ([]byte, error) {
	var out bytes.Buffer
	err := openpgp.DetachSign(&out, s.entity, data, s.config())
	return out.Bytes(), err
}

// armored returns a detached signature as text.
func (s *signer) armored(data io.Reader) ([]byte, error) {
	var out bytes.Buffer
	err := openpgp.ArmoredDetachSign(&out, s.entity, data, s.config())
	return append(out.Bytes(), '\n'), err
}

// inline returns the text with its signature (InRelease).
func (s *signer) inline(text []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, s.key, s.config())
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	err = w.Close()
	return append(out.Bytes(), '\n'), err
}

// public returns the armored public key.
func (s *signer) public() ([]byte, error) {
	var out bytes.Buffer
	w, err := armor.Encode(&out, openpgp.PublicKeyType, nil)
	if err != nil {
		return nil, err
	}
	if err := s.entity.Serialize(w); err != nil {
		return nil, err
	}
	err = w.Close()
	return append(out.Bytes(), '\n'), err
}
