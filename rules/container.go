package rules

// AppliesTo reports whether the rule can apply to a container: its container
// pattern matches the name or the full id. A malformed pattern matches none.
func (r *Rule) AppliesTo(c Container) bool {
	p, err := parseContainer(r.Container)
	switch {
	case err != nil:
		return false
	case p.glob == "":
		return p.text == c.Name || p.text == c.ID
	}
	return matchFlat(p.glob, c.Name) || matchFlat(p.glob, c.ID)
}
