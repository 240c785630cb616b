package cnitemplate

import (
	"bytes"
	"errors"
	"fmt"
	"text/template/parse"
)

// A program is a parsed template. Whatever it makes, text/template makes as well, but it has only what a CNI
// configuration needs: fields, variables, if, with, range and the functions below. Anything else is an error.
//
// text/template itself finds methods by their names at run time, so that the linker keeps every exported method of every
// type: a sixth of berthd, of which 3 MiB would be resident on each node.
type program struct{ tree *parse.Tree }

// parseProgram parses the text of a template. The error names what is not supported.
func parseProgram(name, text string) (*program, error) {
	known := map[string]any{}
	for function := range functions {
		known[function] = function
	}
	trees, err := parse.Parse(name, text, "", "", known)
	switch {
	case err != nil:
		return nil, err
	case len(trees) > 1:
		return nil, errors.New("define and block are not supported")
	case trees[name] == nil || parse.IsEmptyTree(trees[name].Root):
		return nil, errors.New("it is empty")
	}
	return &program{trees[name]}, nil
}

// execute returns the output for v.
func (p *program) execute(v values) ([]byte, error) {
	e := &evaluator{tree: p.tree, vars: []variable{{"$", v}}}
	if err := e.walk(v, p.tree.Root); err != nil {
		return nil, err
	}
	return e.out.Bytes(), nil
}

// An evaluator is one execution. Values are values, strings, lists of strings, int and bool.
type evaluator struct {
	tree *parse.Tree
	out  bytes.Buffer
	vars []variable // the last one of a name counts
}

type variable struct {
	name  string
	value any
}

// What a range does with the rest of its items.
var (
	errBreak    = errors.New("break")
	errContinue = errors.New("continue")
)

// failed returns an error about a node, with its place in the template.
func (e *evaluator) failed(node parse.Node, format string, args ...any) error {
	place, context := e.tree.ErrorContext(node)
	return fmt.Errorf("%s: %s: %w", place, context, fmt.Errorf(format, args...))
}

func (e *evaluator) walk(dot any, node parse.Node) error {
	switch n := node.(type) {
	case *parse.TextNode:
		e.out.Write(n.Text)
	case *parse.ListNode:
		if n == nil {
			return nil // no else
		}
		for _, child := range n.Nodes {
			if err := e.walk(dot, child); err != nil {
				return err
			}
		}
	case *parse.ActionNode:
		value, err := e.pipeline(dot, n.Pipe)
		if err != nil {
			return err
		}
		if len(n.Pipe.Decl) == 0 {
			fmt.Fprint(&e.out, value)
		}
	case *parse.IfNode:
		return e.branch(dot, &n.BranchNode, false)
	case *parse.WithNode:
		return e.branch(dot, &n.BranchNode, true)
	case *parse.RangeNode:
		return e.repeat(dot, &n.BranchNode)
	case *parse.BreakNode:
		return errBreak
	case *parse.ContinueNode:
		return errContinue
	default:
		return e.failed(node, "not supported")
	}
	return nil
}

// branch executes an if or a with.
func (e *evaluator) branch(dot any, n *parse.BranchNode, with bool) error {
	defer e.scope()()
	value, err := e.pipeline(dot, n.Pipe)
	switch {
	case err != nil:
		return err
	case !isTrue(value):
		return e.walk(dot, n.ElseList)
	case with:
		dot = value
	}
	return e.walk(dot, n.List)
}

// repeat executes a range.
func (e *evaluator) repeat(dot any, n *parse.BranchNode) error {
	defer e.scope()()
	value, err := e.commands(dot, n.Pipe)
	if err != nil {
		return err
	}
	list, ok := value.([]string)
	if !ok || n.Pipe.IsAssign {
		return e.failed(n.Pipe, "range needs a list, and new variables if any")
	}
	if len(list) == 0 {
		if err := e.walk(dot, n.ElseList); !errors.Is(err, errBreak) {
			return err
		}
		return nil // as in text/template, it is this range that a break in else ends
	}
	for i, item := range list {
		end := e.scope()
		switch decl := n.Pipe.Decl; len(decl) {
		case 1:
			e.vars = append(e.vars, variable{decl[0].Ident[0], item})
		case 2:
			e.vars = append(e.vars, variable{decl[0].Ident[0], i}, variable{decl[1].Ident[0], item})
		}
		err := e.walk(item, n.List)
		end()
		if errors.Is(err, errBreak) {
			return nil
		}
		if err != nil && !errors.Is(err, errContinue) {
			return err
		}
	}
	return nil
}

// scope returns what ends the variables that are declared from now on.
func (e *evaluator) scope() (end func()) {
	n := len(e.vars)
	return func() { e.vars = e.vars[:n] }
}

// lookup returns the variable of a name.
func (e *evaluator) lookup(node parse.Node, name string) (*variable, error) {
	for i := len(e.vars) - 1; i >= 0; i-- {
		if e.vars[i].name == name {
			return &e.vars[i], nil
		}
	}
	return nil, e.failed(node, "there is no variable %s", name)
}

// pipeline evaluates a pipeline and sets its variables.
func (e *evaluator) pipeline(dot any, p *parse.PipeNode) (any, error) {
	value, err := e.commands(dot, p)
	if err != nil {
		return nil, err
	}
	for _, v := range p.Decl {
		if !p.IsAssign {
			e.vars = append(e.vars, variable{v.Ident[0], value})
			continue
		}
		found, err := e.lookup(v, v.Ident[0])
		if err != nil {
			return nil, err
		}
		found.value = value
	}
	return value, nil
}

// commands evaluates the commands of a pipeline. Each gets the value of the one before as its last argument.
func (e *evaluator) commands(dot any, p *parse.PipeNode) (value any, err error) {
	for i, c := range p.Cmds {
		word, isFunction := c.Args[0].(*parse.IdentifierNode)
		if !isFunction {
			if len(c.Args) > 1 || i > 0 {
				return nil, e.failed(c, "only functions have arguments")
			}
			if value, err = e.value(dot, c.Args[0]); err != nil {
				return nil, err
			}
			continue
		}
		var args []any
		for _, arg := range c.Args[1:] {
			v, err := e.value(dot, arg)
			if err != nil {
				return nil, err
			}
			args = append(args, v)
		}
		if i > 0 {
			args = append(args, value)
		}
		if value, err = functions[word.Ident](args); err != nil {
			return nil, e.failed(c, "%w", err)
		}
	}
	return value, nil
}

// value evaluates one word.
func (e *evaluator) value(dot any, node parse.Node) (any, error) {
	switch n := node.(type) {
	case *parse.DotNode:
		return dot, nil
	case *parse.FieldNode:
		return e.fields(n, dot, n.Ident)
	case *parse.VariableNode:
		v, err := e.lookup(n, n.Ident[0])
		if err != nil {
			return nil, err
		}
		return e.fields(n, v.value, n.Ident[1:])
	case *parse.PipeNode:
		return e.pipeline(dot, n)
	case *parse.StringNode:
		return n.Text, nil
	case *parse.BoolNode:
		return n.True, nil
	case *parse.NumberNode:
		if number := int(n.Int64); n.IsInt && n.Text == fmt.Sprint(number) {
			return number, nil
		}
	}
	return nil, e.failed(node, "not supported")
}

// fields follows the names of fields.
func (e *evaluator) fields(node parse.Node, value any, names []string) (any, error) {
	for _, name := range names {
		v, ok := value.(values)
		switch {
		case ok && name == "PodCIDR":
			value = v.PodCIDR
		case ok && name == "PodCIDRRanges":
			value = v.PodCIDRRanges
		case ok && name == "Routes":
			value = v.Routes
		default:
			return nil, e.failed(node, "there is no field %s", name)
		}
	}
	return value, nil
}

// isTrue reports whether a value is not the zero value of its type.
func isTrue(value any) bool {
	switch v := value.(type) {
	case bool:
		return v
	case int:
		return v != 0
	case string:
		return v != ""
	case []string:
		return len(v) > 0
	default:
		return true
	}
}
