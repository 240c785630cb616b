package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/pflag"
)

// printCompletion prints what lets bash complete our options, what can be said of
// them, and the other words that we know.
func printCompletion(c call, table []group) error {
	var names, dirs, files []string
	var choices strings.Builder
	for _, o := range all(table) {
		names = append(names, "--"+o.name)
		switch what, _ := pflag.UnquoteUsage(&pflag.Flag{Usage: o.usage, Value: o.value}); {
		case o.value.choices() != nil:
			fmt.Fprintf(&choices, "\t--%s) words='%s' ;;\n", o.name, strings.Join(o.value.choices(), " "))
		case what == "DIR", what == "DIRS":
			dirs = append(dirs, "--"+o.name)
		case what == "FILE", what == "PATH":
			files = append(files, "--"+o.name)
		}
	}
	var words []string
	for _, v := range verbs {
		words = append(words, strings.Fields(v.words)...)
	}
	slices.Sort(words)
	_, err := fmt.Fprintf(c.out, completion, strings.Join(names, " "), strings.Join(slices.Compact(words), " "),
		choices.String(), strings.Join(dirs, "|"), strings.Join(files, "|"))
	return err
}

// completion is the script, but for all options, other words, the options that a
// few words are the choices of, those that want a directory, and a file.
//
// Bash takes --option=value for three words, and unix:///PATH, too, unless it was told that
// a colon ends no word.
const completion = `# bash completion for berthd and cri-dockerd
_berthd() {
	local options='%[1]s'
	local words='' kind='' scheme='' at=$COMP_CWORD current=${COMP_WORDS[COMP_CWORD]} option
	COMPREPLY=()
	if [[ $at -ge 3 && ${COMP_WORDS[at-1]} == : ]]; then
		at=$((at - 2))
	fi
	option=${COMP_WORDS[at-1]}
	if [[ $current == = ]]; then
		current=''
	elif [[ $option == = && $at -ge 2 ]]; then
		option=${COMP_WORDS[at-2]}
	fi
	case $option in
%[3]s	%[4]s) kind=-d ;;
	%[5]s) kind=-f ;;
	esac
	if [[ -n $kind ]]; then
		[[ $current != unix://* ]] || scheme=unix://
		mapfile -t COMPREPLY < <(compgen -P "$scheme" $kind -- "${current#unix://}")
		return
	fi
	if [[ -z $words ]]; then
		words='%[2]s'
		[[ $current != -* ]] || words=$options
	fi
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -F _berthd berthd cri-dockerd
`
