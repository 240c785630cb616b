//go:build race

package testmain

const race = true
