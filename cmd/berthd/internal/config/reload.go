package config

// Reload reads the configuration files again and returns new Options with the same command line.
func (o *Options) Reload() (*Options, error) {
	next, err := New(o.defaultFile)
	if err != nil {
		return nil, err
	}
	for i, g := range o.groups {
		for j, opt := range g.options {
			if !opt.flag.Changed {
				continue
			}
			if err := next.groups[i].Flags.Set(opt.name, o.groups[i].options[j].value.String()); err != nil {
				return nil, FlagError(err)
			}
		}
	}
	return next, next.Load()
}

// Reloadable returns the names of the options that a reload applies, in the order of the help.
func (o *Options) Reloadable() (names []string) {
	for _, opt := range o.options {
		if opt.reloadable {
			names = append(names, opt.name)
		}
	}
	return names
}

// Values returns the values of the options that have an effect, as they are written on a command line, by name.
func (o *Options) Values() map[string]string {
	values := map[string]string{}
	for _, opt := range o.options {
		if opt.ignored == "" {
			values[opt.name] = opt.value.String()
		}
	}
	return values
}
