"""What a person looks at in a browser: views make HTML of what the other rooms found, and compute nothing themselves."""
