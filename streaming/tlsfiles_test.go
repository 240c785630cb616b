package streaming

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// An authority signs certificates of clients.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	a := authority{t: t, cert: &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	a.cert, a.key = a.sign(a.cert)
	return a
}

// sign signs a certificate for template with the key of the CA, or with its own if a has none.
func (a authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), signer)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, key
}

// client returns a certificate of the CA for that use, which expires at a time.
func (a authority) client(expires time.Time, use x509.ExtKeyUsage) []tls.Certificate {
	a.t.Helper()
	cert, key := a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: expires, ExtKeyUsage: []x509.ExtKeyUsage{use},
	})
	return []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}
}

// write writes the certificate of the CA to a file.
func (a authority) write(file string) {
	a.t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.cert.Raw}), 0o600); err != nil {
		a.t.Fatal(err)
	}
}

// secured runs a Server that wants certificates of clients, which trust is the CA of. connect makes a TLS
// connection with a client's certificates.
func secured(t *testing.T, e echoRuntime, trust authority) (s *Server, files TLSFiles, connect func([]tls.Certificate) (*tls.Conn, error)) {
	t.Helper()
	dir := t.TempDir()
	files = TLSFiles{Cert: filepath.Join(dir, "crt"), Key: filepath.Join(dir, "key"), ClientCA: filepath.Join(dir, "ca")}
	certificate(t, files)
	trust.write(files.ClientCA)
	s = serve(t, e, files)
	text, err := os.ReadFile(files.Cert)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	sessions := tls.NewLRUClientSessionCache(10) // clients that would resume a session
	return s, files, func(certs []tls.Certificate) (*tls.Conn, error) {
		// Also a certificate of a CA that the server does not name.
		conn, err := tls.Dial("tcp", strings.TrimPrefix(s.URL(), "https://"), &tls.Config{
			RootCAs: roots, ClientSessionCache: sessions, MinVersion: tls.VersionTLS12,
			GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				if len(certs) == 0 {
					return new(tls.Certificate), nil
				}
				return &certs[0], nil
			},
		})
		if err == nil {
			err = conn.SetDeadline(time.Now().Add(20 * time.Second))
		}
		return conn, err
	}
}

// With a CA for clients only those with a certificate of that CA reach the server.
func TestClientsNeedACertificateOfTheCA(t *testing.T) {
	t.Parallel()
	trusted, other, hour := newAuthority(t), newAuthority(t), time.Now().Add(time.Hour)
	s, _, connect := secured(t, echoRuntime{}, trusted)
	for name, tt := range map[string]struct {
		certs []tls.Certificate
		ok    bool
	}{
		"none":             {nil, false},
		"wrong CA":         {other.client(hour, x509.ExtKeyUsageClientAuth), false},
		"expired":          {trusted.client(time.Now().Add(-time.Minute), x509.ExtKeyUsageClientAuth), false},
		"not for a client": {trusted.client(hour, x509.ExtKeyUsageServerAuth), false},
		"right":            {trusted.client(hour, x509.ExtKeyUsageClientAuth), true},
	} {
		for protocol, open := range protocols {
			t.Run(name+" "+protocol, func(t *testing.T) {
				exec, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"echo"}, Stdin: true, Stdout: true})
				if err != nil {
					t.Fatal(err)
				}
				conn, err := connect(tt.certs)
				if !tt.ok {
					if err == nil { // with TLS 1.3 the client has finished before the server verifies
						defer conn.Close()
						err = upgrade(t, conn, protocol, exec.GetUrl())
					}
					if err == nil {
						t.Fatal("the stream is served")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				client := open(t, conn, exec.GetUrl())
				if err := client.writeStdin(); err != nil {
					t.Fatal(err)
				}
				if got, err := io.ReadAll(io.LimitReader(client.stdout, 1)); err != nil || string(got) != "x" {
					t.Errorf("got %q, %v", got, err)
				}
			})
		}
	}
}

// upgrade asks for the protocol on conn and returns an error unless the server has answered.
func upgrade(t *testing.T, conn *tls.Conn, protocol, at string) error {
	t.Helper()
	if protocol == "WebSocket" {
		config, err := websocket.NewConfig(strings.Replace(at, "http", "ws", 1), "http://127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		config.Protocol = []string{"v5.channel.k8s.io"}
		_, err = websocket.NewClient(config, conn)
		return err
	}
	if err := upgradeRequest(t, at).Write(conn); err != nil {
		return err
	}
	_, err := conn.Read(make([]byte, 1))
	return err
}

// The CA can be renewed without a restart, and one that cannot be read admits no client.
func TestCAOfClientsIsReadForEachConnection(t *testing.T) {
	t.Parallel()
	before, after, hour := newAuthority(t), newAuthority(t), time.Now().Add(time.Hour)
	_, files, connect := secured(t, echoRuntime{}, before)
	admitted := func(a authority) bool {
		conn, err := connect(a.client(hour, x509.ExtKeyUsageClientAuth))
		if err != nil {
			return false
		}
		defer conn.Close()
		if _, err := fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			return false
		}
		n, _ := conn.Read(make([]byte, 1))
		return n == 1
	}
	if !admitted(before) || admitted(after) {
		t.Error("the first CA is not in force")
	}
	after.write(files.ClientCA)
	if admitted(before) || !admitted(after) {
		t.Error("the second CA is not in force")
	}
	if err := os.WriteFile(files.ClientCA, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if admitted(before) || admitted(after) {
		t.Error("clients are admitted without a CA")
	}
	if _, err := Listen("", files, nil); err == nil || !strings.Contains(err.Error(), files.ClientCA+" has no certificate in PEM") {
		t.Errorf("listen without a CA: %v", err)
	}
}
