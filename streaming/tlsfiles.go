package streaming

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
)

// TLSFiles names the files of a certificate and its key and, if clients must show
// certificates, that of the CAs which have signed those. They are read for each connection,
// so that they can be renewed.
type TLSFiles struct{ Cert, Key, ClientCA string }

// load reads the files. While one of them is not valid, no connection is accepted.
func (f TLSFiles) load(*tls.ClientHelloInfo) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, err
	}
	// HTTP/1.1 only: a connection of HTTP/2 cannot be hijacked.
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}
	if f.ClientCA == "" {
		return config, nil
	}
	text, err := os.ReadFile(f.ClientCA)
	if err != nil {
		return nil, err
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("CA of clients: %s has no certificate in PEM", f.ClientCA)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	// A resumed session is not verified with the CAs that are in the file now.
	config.SessionTicketsDisabled = true
	return config, nil
}
