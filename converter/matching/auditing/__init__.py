"""What an audit looks at: the values of variables, results unit by unit, what lies between, and configurations."""
