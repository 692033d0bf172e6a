package rules

// Canonical validates one rule.
func Canonical(r Rule) (Rule, []string, error) { return r, nil, nil }
