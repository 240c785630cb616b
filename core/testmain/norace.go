//go:build !race

package testmain

const race = false
