package cnitemplate

import (
	"errors"
	"fmt"
)

// functions are those of text/template that templates can call.
var functions = map[string]func(args []any) (any, error){
	"and":    func(args []any) (any, error) { return firstWith(false, args) },
	"or":     func(args []any) (any, error) { return firstWith(true, args) },
	"not":    not,
	"eq":     func(args []any) (any, error) { return equal(args, true) },
	"ne":     func(args []any) (any, error) { return equal(args, false) },
	"len":    length,
	"index":  index,
	"printf": printf,
}

var errArguments = errors.New("wrong number or type of arguments")

// firstWith returns the first argument that is true or not, else the last one.
func firstWith(truth bool, args []any) (any, error) {
	for i, arg := range args {
		if isTrue(arg) == truth || i == len(args)-1 {
			return arg, nil
		}
	}
	return nil, errArguments
}

func not(args []any) (any, error) {
	if len(args) != 1 {
		return nil, errArguments
	}
	return !isTrue(args[0]), nil
}

// equal compares two values of the same basic type.
func equal(args []any, want bool) (any, error) {
	if len(args) != 2 {
		return nil, errArguments
	}
	switch a := args[0].(type) {
	case string:
		if b, ok := args[1].(string); ok {
			return (a == b) == want, nil
		}
	case int:
		if b, ok := args[1].(int); ok {
			return (a == b) == want, nil
		}
	case bool:
		if b, ok := args[1].(bool); ok {
			return (a == b) == want, nil
		}
	}
	return nil, errArguments
}

func length(args []any) (any, error) {
	if len(args) == 1 {
		switch v := args[0].(type) {
		case string:
			return len(v), nil
		case []string:
			return len(v), nil
		}
	}
	return nil, errArguments
}

// index returns an element of a list.
func index(args []any) (any, error) {
	if len(args) != 2 {
		return nil, errArguments
	}
	list, isList := args[0].([]string)
	i, isInt := args[1].(int)
	if !isList || !isInt {
		return nil, errArguments
	}
	if i < 0 || i >= len(list) {
		return nil, fmt.Errorf("there is no element %d", i)
	}
	return list[i], nil
}

func printf(args []any) (any, error) {
	if len(args) == 0 {
		return nil, errArguments
	}
	format, ok := args[0].(string)
	if !ok {
		return nil, errArguments
	}
	return fmt.Sprintf(format, args[1:]...), nil
}
