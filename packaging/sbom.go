package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// A document is the SBOM of a program in the format of SPDX 2.3.
type document struct {
	Version       string     `json:"spdxVersion"`
	License       string     `json:"dataLicense"`
	ID            string     `json:"SPDXID"`
	Name          string     `json:"name"`
	Namespace     string     `json:"documentNamespace"`
	Creation      creation   `json:"creationInfo"`
	Packages      []part     `json:"packages"`
	Relationships []relation `json:"relationships"`
}

// A creation is the time and the tool that created a document.
type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type part struct {
	ID          string      `json:"SPDXID"`
	Name        string      `json:"name"`
	Version     string      `json:"versionInfo"`
	Location    string      `json:"downloadLocation"`
	Analyzed    bool        `json:"filesAnalyzed"`
	License     string      `json:"licenseConcluded"`
	Declared    string      `json:"licenseDeclared"`
	Copyright   string      `json:"copyrightText"`
	Checksums   []checksum  `json:"checksums,omitempty"`
	References  []reference `json:"externalRefs,omitempty"`
	Description string      `json:"comment,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type reference struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relation struct {
	From string `json:"spdxElementId"`
	Kind string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const unknown = "NOASSERTION"

// sbom writes the SBOM of a program to path, from the build information in the program.
func (r release) sbom(program, path string) error {
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(content)
	machine := strings.TrimPrefix(filepath.Base(program), "berthd-")
	doc := document{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: "berthd-" + r.number() + "-" + machine,
		Namespace: fmt.Sprintf("urn:berth:%s:%s:%x", r.number(), machine, sum[:8]),
		Creation:  creation{r.date.Format(time.RFC3339), []string{"Tool: berth-packaging"}},
		Packages: []part{{
			ID: "SPDXRef-berthd", Name: "berthd", Version: r.number(), Location: unknown, License: "Apache-2.0", Declared: "Apache-2.0",
			Copyright: unknown, Checksums: []checksum{{"SHA256", hex.EncodeToString(sum[:])}},
		}},
		Relationships: []relation{{"SPDXRef-DOCUMENT", "DESCRIBES", "SPDXRef-berthd"}},
	}
	add := func(name, version, purl, hash string) {
		p := part{
			ID: fmt.Sprintf("SPDXRef-%d", len(doc.Packages)), Name: name, Version: version, Location: unknown, License: unknown,
			Declared: unknown, Copyright: unknown, References: []reference{{"PACKAGE-MANAGER", "purl", purl}},
		}
		if raw, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(hash, "h1:")); err == nil && len(raw) > 0 {
			p.Description = "go.sum " + hash
		}
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, relation{"SPDXRef-berthd", "CONTAINS", p.ID})
	}
	version := strings.TrimPrefix(info.GoVersion, "go")
	add("stdlib", version, "pkg:golang/stdlib@"+version, "")
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		add(m.Path, m.Version, "pkg:golang/"+m.Path+"@"+strings.ReplaceAll(m.Version, "+", "%2B"), m.Sum)
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}
